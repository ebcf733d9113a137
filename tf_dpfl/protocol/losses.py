"""The losses a plan can name."""

from __future__ import annotations

SPARSE_LOSS = "sparse_categorical_crossentropy"
BINARY_LOSS = "binary_crossentropy"
LOSSES = (
    SPARSE_LOSS,
    "categorical_crossentropy",
    BINARY_LOSS,
    "mean_squared_error",
    "mean_absolute_error",
    "huber",
)
