"""The example with a user's own model and data, run as its reader would."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import tensorflow as tf

import tf_dpfl

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "own_model_and_data.py"


def test_own_model_and_data_go_from_files_to_a_task(tmp_path):
    with open(tmp_path / "log", "w+") as log:
        done = subprocess.run(
            [sys.executable, str(EXAMPLE), str(tmp_path)],
            stdout=log,
            stderr=log,
            env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
            timeout=300,
        )
        log.seek(0)
        text = log.read()
    assert done.returncode == 0, text
    assert "PRIVACY CARD" in text
    card = json.loads((tmp_path / "run" / "privacy.json").read_text())
    assert 3.9 < card["central"]["epsilon"] <= 4.0  # the plan's target
    with np.load(tmp_path / "own_data" / "test.npz") as test:
        x, y = test["x"], test["y"]
    model = tf.keras.models.load_model(tmp_path / "model" / "own.keras", compile=False)
    accuracy = (model.predict(x, verbose=0).argmax(1) == y).mean()
    assert f"accuracy {accuracy:.3f}" in text
    assert accuracy > 0.6  # guessing gives a third
    assert (tmp_path / "task" / "client.tflite").exists()


def test_own_model_and_data_takes_less_than_forty_lines():
    assert len(EXAMPLE.read_text().splitlines()) < 40


def output_of_snippet(number, tmp_path):
    text = (ROOT / "docs" / "python.md").read_text()
    snippets = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert len(snippets) == 2
    with open(tmp_path / "log", "w+") as log:
        done = subprocess.run(
            [sys.executable, "-c", snippets[number]],
            stdout=log,
            stderr=log,
            env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
            cwd=ROOT,
            timeout=300,
        )
        log.seek(0)
        output = log.read()
    assert done.returncode == 0, output
    return output


def test_the_loop_of_the_documentation_runs_as_written(tmp_path):
    output = output_of_snippet(0, tmp_path)
    assert output.count("'released', True") == 3
    assert "rounds: 3 of 30 done" in output


def test_the_central_training_of_the_documentation_runs_as_written(tmp_path):
    output = output_of_snippet(1, tmp_path)
    assert "48 steps of DP-SGD" in output
    assert 1.98 <= float(re.search(r"epsilon = (\S+) at", output)[1]) <= 2.0


def test_every_public_function_is_in_the_documentation():
    text = (ROOT / "docs" / "python.md").read_text()
    for name in tf_dpfl.__all__:
        assert name.startswith("__") or f"`{name}(" in text, name
