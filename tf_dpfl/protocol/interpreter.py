"""Finding a TFLite interpreter: LiteRT, tflite-runtime, or the one in TensorFlow.

Exporter, server and device all run `client.tflite`; this is the one place that
knows which packages carry an interpreter. Nothing is imported before it is
asked for, and TensorFlow's only where it is already loaded.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

from tf_dpfl.protocol.errors import StateError

PACKAGES = {
    "ai-edge-litert": "ai_edge_litert.interpreter",
    "tflite-runtime": "tflite_runtime.interpreter",
}
"""Package: its module; the first one installed is taken."""

CHOICE_VARIABLE = "DPFL_INTERPRETER"
"""The environment variable that names one of `PACKAGES`, where several are installed."""


def interpreter_class() -> Any:
    """The `Interpreter` class of the package chosen, else of the first one found.

    Raises StateError naming the packages to install when there is none, or the
    chosen one is not there.
    """
    chosen = os.environ.get(CHOICE_VARIABLE)
    if chosen is not None and chosen not in PACKAGES:
        raise StateError(
            f"{CHOICE_VARIABLE}={chosen} must be one of {', '.join(PACKAGES)}, or not be set"
        )
    for name in [chosen] if chosen else PACKAGES:
        try:
            return importlib.import_module(PACKAGES[name]).Interpreter
        except ImportError:
            continue
    if chosen:
        raise StateError(f"{CHOICE_VARIABLE}={chosen} is not installed; pip install {chosen}")
    if "tensorflow" in sys.modules:
        return sys.modules["tensorflow"].lite.Interpreter
    raise StateError(
        "no TFLite interpreter is installed; pip install ai-edge-litert or tflite-runtime"
    )


def load_interpreter(model: bytes, *, num_threads: int = 1) -> Any:
    """An interpreter of the TFLite file's content `model`."""
    return interpreter_class()(model_content=model, num_threads=num_threads)
