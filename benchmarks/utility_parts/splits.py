"""What central training is made on and judged by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

DELTA = 1e-5
HELD_OUT = 10_000  # of the training images, to choose settings on

Labelled = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Split:
    """Inputs and labels to train on and to be judged by."""

    train: Labelled
    test: Labelled


def split_of(train: Labelled, test: Callable[[], Labelled], *, held_out: bool) -> Split:
    """With `held_out` the last training examples are the test, and `test` is not loaded."""
    if not held_out:
        return Split(train, test())
    (x, y), kept = train, len(train[0]) - HELD_OUT
    return Split((x[:kept], y[:kept]), (x[kept:], y[kept:]))
