"""The accuracy a server publishes is the one Keras gives for the model it released."""

import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow as tf
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from mobile_client.transport import Link, open_client
from models.registry import build_model
from tf_dpfl.data.federated import load_federated_data
from tf_dpfl.export.task import export_client
from tf_dpfl.protocol.plan import plan_from_dict
from tf_dpfl.protocol.tensors import vector_from_bytes, vector_to_bytes

DEVICES = 2
DEADLINE_S = 90


def plan_for(model):
    return plan_from_dict(
        {
            "version": 1,
            "task": {"model": model},
            "data": {"source": "digits"},
            "clients": {
                "population": DEVICES,
                "clients_per_round": DEVICES,
                "examples_per_client": 10,
                "sampling": "poisson",
            },
            "local_training": {"epochs": 1, "batch_size": 5, "learning_rate": 0.1},
            "privacy": {
                "clip_norm": 1.0,
                "delta": 1e-2,
                "smallest_cohort": DEVICES,
                "noise_multiplier": 0.0,
            },
            "server": {"rounds": 1},
        }
    )


def released_line(task, state, test_data, update, task_id):
    """The one line of metrics.jsonl after every device reported `update`."""
    command = [sys.executable, "-m", "server.cli", "run", str(task), "--state", str(state)]
    command += ["--tokens", str(DEVICES), "--start-when", str(DEVICES), "--poll", "0.05"]
    command += ["--test-data", str(test_data), "--exit-when-done", "--linger", "0.1"]
    log = state.parent / "server.log"
    with open(log, "wb") as output:
        server = subprocess.Popen(command, stdout=output, stderr=output, env=os.environ)
    try:
        ends = time.monotonic() + DEADLINE_S
        while not (state / "url.txt").exists():
            assert server.poll() is None and time.monotonic() < ends, log.read_text()
            time.sleep(0.05)
        with open_client((state / "url.txt").read_text().strip()) as client:
            links = [Link(client, Ed25519PrivateKey.generate()) for _ in range(DEVICES)]
            for link, token in zip(links, (state / "tokens.txt").read_text().split(), strict=True):
                link.enroll(token)
            while links[0].check_in(task_id=task_id).state == "wait":
                assert time.monotonic() < ends
                time.sleep(0.05)
            for link in links:
                link.send_update(task_id=task_id, round_number=1, body=vector_to_bytes(update))
        assert server.wait(DEADLINE_S) == 0, log.read_text()
    finally:
        if server.poll() is None:
            server.kill()
            server.wait()
    return json.loads((state / "metrics.jsonl").read_text())


@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_a_servers_accuracy_and_loss_are_those_of_keras(tmp_path, name):
    plan = plan_for(name)
    data = load_federated_data(plan)
    x, y = data.test["x"][:300], data.test["y"][:300]  # two calls of the interpreter, one short
    np.savez(tmp_path / "test.npz", x=x, y=y)
    model = build_model(name, input_shape=data.input_shape, classes=data.classes)
    key = tmp_path / "author.key"
    manifest = export_client(plan, tmp_path / "task", signing_key=key, model=model)

    # Weights nobody trained, far from the exported ones: the released model is what is scored.
    update = np.random.default_rng(5).normal(0, 0.3, manifest.layout.size).astype(np.float32)
    state = tmp_path / "state"
    line = released_line(tmp_path / "task", state, tmp_path / "test.npz", update, manifest.task_id)

    latest = json.loads((state / "latest.json").read_text())
    released = vector_from_bytes(
        (state / latest["weights"]).read_bytes(), size=manifest.layout.size
    )
    sizes = np.cumsum([tf.size(v) for v in model.trainable_variables])[:-1]
    parts = np.split(released, sizes)
    for variable, part in zip(model.trainable_variables, parts, strict=True):
        variable.assign(part.reshape(variable.shape))
    logits = model(x, training=False).numpy()
    losses = tf.keras.losses.sparse_categorical_crossentropy(y, logits, from_logits=True)
    right = logits.argmax(axis=1) == y
    assert 0 < right.sum() < len(y)
    assert line["accuracy"] == pytest.approx(right.mean(), abs=1e-9)
    assert line["loss"] == pytest.approx(float(np.mean(losses)), rel=1e-4)
