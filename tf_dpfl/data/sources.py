"""The public data sets that a plan can name, each with its fixed test split."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tf_dpfl.data.fashion_mnist import CLASSES, find_fashion_mnist
from tf_dpfl.protocol.errors import DataError
from tf_dpfl.protocol.examples import Int32

# Digits come without a split. Of each class this share is for testing; which
# examples is fixed by the seed below and never by the plan, so that no partition
# seed can move a test image to a client.
DIGITS_TEST_SHARE = 0.2
DIGITS_SPLIT_SEED = 20170216


@dataclass(frozen=True, eq=False)
class Source:
    """A labelled data set in bytes; a feature stands for value / `feature_scale`.

    `train_x` uint8 [n, *input_shape], `train_y` int32 [n], `test_x` and `test_y`
    alike; `record` says in plain JSON values where they come from.
    """

    train_x: NDArray[np.uint8]
    train_y: Int32
    test_x: NDArray[np.uint8]
    test_y: Int32
    feature_scale: float
    classes: int
    record: Mapping[str, Any]


def load_source(name: str) -> Source:
    """The source `name`: "digits" or "fashion_mnist". Raises DataError."""
    if name not in _SOURCES:
        raise DataError(f'data.source="{name}" is unknown; known: {", ".join(_SOURCES)}')
    return _SOURCES[name]()


def digits_split(labels: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Indices of training and of test examples, [n_train] and [n_test], ascending.

    Of each class the DIGITS_TEST_SHARE (rounded down) whose SHA-256 of
    "seed:index" is smallest is for testing: fixed whatever NumPy's version.
    """
    test: list[int] = []
    for label in np.unique(labels):
        members = sorted(np.flatnonzero(labels == label).tolist(), key=_split_key)
        test += members[: int(len(members) * DIGITS_TEST_SHARE)]
    chosen = np.zeros(len(labels), bool)
    chosen[test] = True
    return np.flatnonzero(~chosen), np.flatnonzero(chosen)


def _split_key(index: int) -> bytes:
    return hashlib.sha256(f"{DIGITS_SPLIT_SEED}:{index}".encode()).digest()


def _digits() -> Source:
    """1,797 handwritten digits of 8 x 8 (UCI, bundled with scikit-learn), values 0 to 16."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise DataError(
            'data.source="digits" comes with scikit-learn: pip install scikit-learn'
        ) from None
    bunch = load_digits()
    images = bunch.images.astype(np.uint8)[..., None]
    labels = bunch.target.astype(np.int32)
    train, test = digits_split(labels)
    return Source(
        train_x=images[train],
        train_y=labels[train],
        test_x=images[test],
        test_y=labels[test],
        feature_scale=16.0,
        classes=10,
        record={
            "source": "digits",
            "found": "scikit-learn",
            "test_split": {
                "share_of_each_class": DIGITS_TEST_SHARE,
                "seed": DIGITS_SPLIT_SEED,
            },
        },
    )


def _fashion_mnist() -> Source:
    """Fashion-MNIST with its own split of 60,000 and 10,000."""
    found = find_fashion_mnist()
    return Source(
        train_x=found.train_x,
        train_y=found.train_y.astype(np.int32),
        test_x=found.test_x,
        test_y=found.test_y.astype(np.int32),
        feature_scale=255.0,
        classes=CLASSES,
        record={
            "source": "fashion_mnist",
            "found": found.found,
            "test_split": "the data set's own",
        },
    )


_SOURCES: dict[str, Callable[[], Source]] = {
    "digits": _digits,
    "fashion_mnist": _fashion_mnist,
}
