"""The table of signatures in `docs/devices.md` is what an exported file has."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from export_bench import plan_of

from tf_dpfl.export.client import build_client_tflite
from tf_dpfl.protocol.interpreter import load_interpreter

DOCUMENT = Path(__file__).parents[2] / "docs" / "devices.md"
ROW = re.compile(r"\| `(\w+)` \| (in|out) \| `(\w+)` \| ([\w ]+) \| (\[.*?\]) \|")
BATCH, CLASSES = 4, 3
Rows = dict[tuple[str, str, str], tuple[str, str]]


def of_document() -> Rows:
    found = ROW.findall(DOCUMENT.read_text())
    rows = {(name, way, tensor): (dtype, shape) for name, way, tensor, dtype, shape in found}
    assert len(rows) == len(found)
    return rows


@pytest.fixture(scope="module")
def of_file() -> Rows:
    """Each tensor's type and shape, in the document's letters."""
    layers = tf.keras.layers
    model = tf.keras.Sequential(
        [layers.InputLayer((7,)), layers.Dense(5), layers.Dropout(0.5), layers.Dense(CLASSES)]
    )
    keeping = {"optimizer": "adam", "optimizer_state": "keep"}
    plan = plan_of(batch_size=BATCH, unit="example", delta=1e-5, local_training=keeping)
    interpreter = load_interpreter(build_client_tflite(model, plan))
    weights = model.count_params()
    shapes = {
        (): "[]",
        (BATCH,): "[B]",
        (BATCH, 5): "[B, r]",
        (weights,): "[d]",
        (2 * weights + 1,): "[s]",
        (BATCH, 7): "[B, ...]",
        (-1, 7): "[n, ...]",
        (-1, CLASSES): "[n, ...]",
    }
    rows: Rows = {}
    for name in interpreter.get_signature_list():
        runner = interpreter.get_signature_runner(name)
        sides = {"in": runner.get_input_details(), "out": runner.get_output_details()}
        for way, details in sides.items():
            for tensor, detail in details.items():
                shape = tuple(int(size) for size in detail["shape_signature"])
                letters = "[B, ...]" if tensor == "y" else shapes.get(shape)
                if tensor.startswith("noise_"):
                    assert shape == model.trainable_variables[int(tensor[6:])].shape
                    tensor, letters = "noise_i", "[s_i]"
                assert letters is not None, (name, tensor)
                rows[name, way, tensor] = np.dtype(detail["dtype"]).name, letters
    return rows


def test_every_tensor_of_every_signature_is_documented(of_file: Rows) -> None:
    assert set(of_document()) == set(of_file)


def test_documented_types_and_shapes_are_the_files(of_file: Rows) -> None:
    for key, (dtype, shape) in of_document().items():
        assert of_file[key][0] in dtype.split(" or "), key
        assert of_file[key][1] == shape, key
