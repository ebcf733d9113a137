"""Finding a TFLite interpreter: LiteRT, tflite-runtime, or the one in TensorFlow.

Exporter, server and device all run `client.tflite`; this is the one place that
knows which packages carry an interpreter. Nothing is imported before it is
asked for, and TensorFlow's only where it is already loaded.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

from tf_dpfl.protocol.errors import StateError

_PACKAGES = ("ai_edge_litert.interpreter", "tflite_runtime.interpreter")


def interpreter_class() -> Any:
    """The `Interpreter` class of the first package found.

    Raises StateError naming the packages to install when there is none.
    """
    for name in _PACKAGES:
        try:
            return importlib.import_module(name).Interpreter
        except ImportError:
            continue
    if "tensorflow" in sys.modules:
        return sys.modules["tensorflow"].lite.Interpreter
    raise StateError(
        "no TFLite interpreter is installed; pip install ai-edge-litert or tflite-runtime"
    )


def load_interpreter(model: bytes, *, num_threads: int = 1) -> Any:
    """An interpreter of the TFLite file's content `model`."""
    return interpreter_class()(model_content=model, num_threads=num_threads)
