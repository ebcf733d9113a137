"""Writes what the systems of `./run bench device` read: `python files.py OUT MODEL:BATCH...`.

For each pair OUT/MODEL-BATCH/ with client.tflite (of a plan with the unit
"example"), user.tflite (of the same with the unit "user"), batch.npz (x, y),
weights.npy and facts.json (sizes, the method of `train_dp`).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from keras_models import CLASSES, MODELS, VOCABULARY

from tf_dpfl.client_work.computation import ClientComputation, layout_of
from tf_dpfl.export.client import build_client_tflite, dp_method_of, infer_signature
from tf_dpfl.export.convert import convert
from tf_dpfl.export.gradients import op_gradients
from tf_dpfl.protocol import signatures
from tf_dpfl.protocol.plan import Plan, plan_from_dict


def _plan(batch: int, unit: str) -> Plan:
    return plan_from_dict(
        {
            "version": 1,
            "task": {"model": "mlp"},
            "data": {"source": "digits"},
            "clients": {
                "population": 100,
                "clients_per_round": 10,
                "examples_per_client": batch,
                "sampling": "poisson",
            },
            "local_training": {"epochs": 1, "batch_size": batch, "learning_rate": 0.1},
            "privacy": {
                "clip_norm": 1.0,
                "delta": 1e-4,
                "smallest_cohort": 5,
                "noise_multiplier": 1.0,
                "unit": unit,
            },
            "server": {"rounds": 1},
        }
    )


def write(out: Path, name: str, batch: int) -> None:
    """The folder of one workload."""
    tf.keras.utils.set_random_seed(1)
    model, plan, rng = MODELS[name](), _plan(batch, "example"), np.random.default_rng(1)
    shape: tuple[Any, ...] = (batch, *model.input_shape[1:])
    x = (
        rng.integers(0, VOCABULARY[name], shape).astype(np.int32)
        if name in VOCABULARY
        else rng.random(shape, np.float32)
    )
    out.mkdir()
    np.savez(out / "batch.npz", x=x, y=rng.integers(0, CLASSES, batch).astype(np.int32))
    weights = layout_of(model).join([v.numpy() for v in model.trainable_variables])
    np.save(out / "weights.npy", weights)
    computation = ClientComputation(model, plan.local_training, op_gradients=op_gradients())
    client = build_client_tflite(model, plan)
    (out / "client.tflite").write_bytes(client)
    (out / "user.tflite").write_bytes(build_client_tflite(model, _plan(batch, "user")))
    infer = infer_signature(computation.infer, computation.interface.inputs)
    inference = convert(computation, {signatures.INFER: infer}, model=model, variables_change=False)
    facts = {
        "client_bytes": len(client),
        "inference_bytes": len(inference),
        "weights_bytes": weights.nbytes,
        "dp_method": dp_method_of(model, plan).name,
    }
    (out / "facts.json").write_text(json.dumps(facts))


if __name__ == "__main__":
    for workload in sys.argv[2:]:
        model_name, batch_size = workload.split(":")
        write(Path(sys.argv[1]) / f"{model_name}-{batch_size}", model_name, int(batch_size))
