"""Evaluation: accuracy of a model on the operator's test set, through TFLite."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tf_dpfl.protocol import signatures
from tf_dpfl.protocol.errors import DataError
from tf_dpfl.protocol.examples import Examples, read_examples
from tf_dpfl.protocol.interface import TARGET
from tf_dpfl.protocol.interpreter import load_interpreter
from tf_dpfl.protocol.manifest import Manifest
from tf_dpfl.protocol.tensors import Float32

# Examples a call of `infer`: bounds the activations held at once.
_EXAMPLES_PER_CALL = 250


@dataclass(frozen=True)
class Score:
    """Mean over the test set: share of right classes, and cross-entropy in nats."""

    accuracy: float
    loss: float


class Evaluator:
    """Holds the test set and an interpreter of `client.tflite`."""

    def __init__(self, client: bytes, examples: Examples):
        self._y = examples[TARGET]
        self._inputs = {name: a for name, a in examples.items() if name != TARGET}
        interpreter = load_interpreter(client)
        self._set_weights: Any = interpreter.get_signature_runner(signatures.SET_WEIGHTS)
        self._infer: Any = interpreter.get_signature_runner(signatures.INFER)

    def score(self, weights: Float32) -> Score:
        """Scores weights of shape [d]."""
        self._set_weights(weights=weights)
        right, loss = 0, 0.0
        for start in range(0, len(self._y), _EXAMPLES_PER_CALL):
            stop = start + _EXAMPLES_PER_CALL
            y = self._y[start:stop]
            inputs = {name: values[start:stop] for name, values in self._inputs.items()}
            logits = self._infer(**inputs)["logits"].astype(np.float64)
            right += int((logits.argmax(axis=1) == y).sum())
            top = logits.max(axis=1)
            log_total = top + np.log(np.exp(logits - top[:, np.newaxis]).sum(axis=1))
            loss += float((log_total - logits[np.arange(len(y)), y]).sum())
        return Score(right / len(self._y), loss / len(self._y))


def load_test_data(path: Path, manifest: Manifest) -> Examples:
    """Inputs and class ids of the operator's `.npz` file, [n, ...] each.

    Raises DataError naming what does not fit the task, or that the task has no
    classes to be right about.
    """
    if manifest.interface.classes is None or manifest.interface.target.shape:
        raise DataError(
            "--test-data is for tasks with one class id an example; leave it out and evaluate "
            "the exported model (dpfl export model)"
        )
    try:
        return read_examples(path, manifest.interface)
    except DataError as error:
        raise DataError(f"--test-data {error}") from None
