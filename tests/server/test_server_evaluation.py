"""Evaluation: the score of given logits, and test files that do not fit the task."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from server_helpers import make_plan, make_task

from server import evaluation
from server.evaluation import Evaluator, load_test_data
from tf_dpfl.protocol import signatures
from tf_dpfl.protocol.errors import DataError, StateError


class TwoClassInterpreter:
    """Stands in for `client.tflite`, which needs TensorFlow to be made: logits are w * x."""

    weights = np.zeros(2, np.float32)

    def get_signature_runner(self, name: str):
        return {signatures.SET_WEIGHTS: self.set_weights, signatures.INFER: self.infer}[name]

    def set_weights(self, *, weights: np.ndarray) -> None:
        self.weights = weights

    def infer(self, *, x: np.ndarray) -> dict[str, np.ndarray]:
        return {"logits": (x * self.weights).astype(np.float32)}


def test_accuracy_and_loss_are_means_over_all_calls(monkeypatch) -> None:
    monkeypatch.setattr(evaluation, "load_interpreter", lambda client: TwoClassInterpreter())
    # 601 examples: three calls, the last one short. Class 1 has the larger logit.
    x = np.tile(np.float32([0, 1]), (601, 1))
    y = np.int32([1] * 501 + [0] * 100)
    score = Evaluator(b"", {"x": x, "y": y}).score(np.float32([1, 3]))
    assert score.accuracy == 501 / 601
    right, wrong = math.log(1 + math.exp(-3)), math.log(1 + math.exp(3))
    assert score.loss == pytest.approx((501 * right + 100 * wrong) / 601)
    # Logits beyond exp's range do not overflow.
    score = Evaluator(b"", {"x": x, "y": y}).score(np.float32([1, 5000]))
    assert score.loss == pytest.approx(100 * 5000 / 601)


def test_what_is_not_a_model_is_not_scored() -> None:
    with pytest.raises((ValueError, RuntimeError, StateError)):
        Evaluator(b"not a model", {"x": np.zeros((1, 2), np.float32), "y": np.zeros(1, np.int32)})


def test_test_data_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    manifest = make_task(tmp_path / "task", make_plan())  # input_shape [2], 2 classes
    good = {"x": np.zeros((3, 2), np.uint8), "y": np.array([0, 1, 1])}

    def load(**changes: np.ndarray) -> None:
        np.savez(tmp_path / "data.npz", **{**good, **changes})
        x, y = load_test_data(tmp_path / "data.npz", manifest).values()
        assert (x.dtype, y.dtype) == (np.float32, np.int32)

    load()
    for changes in (
        {"x": np.zeros((3, 3))},
        {"x": np.zeros((0, 2)), "y": np.zeros(0, int)},
        {"x": np.full((3, 2), np.nan)},
        {"x": np.array([[None, None]] * 3, dtype=object)},
        {"x": np.array([["a", "b"]] * 3)},
        {"y": np.zeros(2, int)},
        {"y": np.full(3, 0.5)},
        {"y": np.array([0, 1, 2])},
        {"y": np.array([0, 1, -1])},
        {"y": np.zeros((3, 1), int)},
    ):
        with pytest.raises(DataError, match="--test-data"):
            load(**changes)
    np.savez(tmp_path / "data.npz", x=good["x"])
    with pytest.raises(DataError, match="y is missing"):
        load_test_data(tmp_path / "data.npz", manifest)
    for garbage in (b"", b"PK garbage"):
        (tmp_path / "data.npz").write_bytes(garbage)
        with pytest.raises(DataError):
            load_test_data(tmp_path / "data.npz", manifest)
