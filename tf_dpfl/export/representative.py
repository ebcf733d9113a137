"""The data that calibrates int8 activations, and why they may not be a client's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tensorflow as tf

from tf_dpfl.protocol.errors import DataError, ExportError
from tf_dpfl.protocol.tensors import Float32

SOURCES = ("public", "released")

# Ranges settle long before; more only takes longer.
_MOST_EXAMPLES = 500

_WHY = (
    "int8 writes the ranges of activations on these examples into the model without any noise, "
    "so data of clients would leak past the privacy card"
)


def load_representative(path: Path | None, *, source: str | None, model: tf.keras.Model) -> Float32:
    """The examples `x`, float32 [n, ...], of the `.npz` file `path`.

    Raises:
      ExportError: no data, or not declared "public" or "released".
      DataError: the file is not readable or does not fit the model's input.
    """
    if path is None:
        raise ExportError(
            f"tflite-int8 needs representative_data, an .npz file with an array x: {_WHY}; give "
            "public data or data that were released before"
        )
    if source not in SOURCES:
        raise ExportError(
            f"representative_source={source!r} must be 'public' or 'released': {_WHY}"
        )
    shape = tuple(model.input_shape[1:])
    try:
        with np.load(path, allow_pickle=False) as file:
            x = np.asarray(file["x"])
    except (OSError, ValueError, KeyError, EOFError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: no array x can be read from it: {error}") from None
    if x.shape[1:] != shape or not len(x) or x.dtype.kind not in "fiu":
        raise DataError(
            f"{path}: x is {x.dtype} of shape {x.shape}; it must be numbers of shape (n, "
            f"{', '.join(map(str, shape))}), n at least 1"
        )
    x = x[:_MOST_EXAMPLES].astype(np.float32)
    if not np.isfinite(x).all():
        raise DataError(f"{path}: x has values that are not finite")
    return x
