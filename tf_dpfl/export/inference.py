"""Predicting with an exported TFLite model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from tf_dpfl.export.quiet import quiet
from tf_dpfl.protocol import signatures
from tf_dpfl.protocol.errors import ExportError
from tf_dpfl.protocol.interpreter import load_interpreter
from tf_dpfl.protocol.tensors import Float32

_EXAMPLES_PER_CALL = 500


def predict_tflite(content: bytes, x: Float32) -> Float32:
    """Logits, float32 [n, classes], of `x`, float32 [n, ...], by the signature `infer`.

    Raises ExportError when the interpreter can not run the file on `x`.
    """
    starts = range(0, len(x), _EXAMPLES_PER_CALL)
    try:
        with quiet():
            interpreter = load_interpreter(content)
        infer = interpreter.get_signature_runner(signatures.INFER)
        parts = [np.array(infer(x=x[i : i + _EXAMPLES_PER_CALL])["logits"]) for i in starts]
    except (RuntimeError, ValueError) as error:
        raise ExportError(f"the TFLite file fails in the interpreter: {error}") from None
    return np.concatenate(parts)


def evaluate_tflite(path: Path, x: Float32, y: Any) -> float:
    """Accuracy, in [0, 1], of the TFLite model in `path` on n > 0 examples.

    Raises ValueError without examples.
    """
    if not len(x) or len(x) != len(y):
        raise ValueError(f"{len(x)} examples and {len(y)} labels; needed are as many, at least 1")
    logits = predict_tflite(path.read_bytes(), np.asarray(x, np.float32))
    return float(np.mean(np.argmax(logits, axis=1) == np.asarray(y)))
