"""The federated data set: every client's examples in shared columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tf_dpfl.protocol.examples import Int32
from tf_dpfl.protocol.tensors import Float32


@dataclass(frozen=True, eq=False)
class FederatedData:
    """Clients and, apart from them, the test split.

    Client i has the rows offsets[i] to offsets[i+1] of `features` and `labels`.

    Attributes:
      features: uint8 or float32 [n, *input_shape]; a value stands for
        value / `feature_scale`, so that images stay bytes in memory.
      labels: int32 [n] in [0, classes).
      offsets: int64 [population + 1], not decreasing, from 0 to n.
      feature_scale: > 0; 1 when `features` are float32.
      classes: number of classes, at least 2.
      test_x: float32 [m, *input_shape], already scaled; m may be 0.
      test_y: int32 [m].
      client_names: one for each client, unique.
      description: plain JSON values that say what this is, for the run's record.
    """

    features: NDArray[Any]
    labels: Int32
    offsets: NDArray[np.int64]
    feature_scale: float
    classes: int
    test_x: Float32
    test_y: Int32
    client_names: tuple[str, ...]
    description: Mapping[str, Any] = field(default_factory=dict)

    @property
    def population(self) -> int:
        """Number of clients."""
        return len(self.offsets) - 1

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one example's features."""
        return tuple(self.features.shape[1:])

    @property
    def counts(self) -> NDArray[np.int64]:
        """How many examples each client has, [population]."""
        return np.diff(self.offsets)

    def client(self, index: int) -> tuple[Float32, Int32]:
        """Client `index`'s examples in stored order: x float32 [n, ...], y int32 [n].

        Raises IndexError unless 0 <= index < population.
        """
        if not 0 <= index < self.population:
            raise IndexError(f"client {index} is not one of the {self.population}")
        rows = slice(self.offsets[index], self.offsets[index + 1])
        return scaled(self.features[rows], self.feature_scale), self.labels[rows].copy()


def scaled(features: NDArray[Any], feature_scale: float) -> Float32:
    """`features` / `feature_scale` in float32, as a new array."""
    return features.astype(np.float32) / np.float32(feature_scale)


def padded_clients(
    data: FederatedData, ids: Sequence[int] | NDArray[Any], examples_per_client: int
) -> tuple[Float32, Int32, Int32]:
    """The examples of k clients as arrays of one size, padded with zeros.

    Args:
      data: the data set.
      ids: k client indices in [0, population); k may be 0.
      examples_per_client: of each client only the first so many are taken.

    Returns:
      x float32 [k, examples_per_client, *input_shape], y int32
      [k, examples_per_client] and counts int32 [k]: row i's first counts[i]
      examples are its client's, in stored order. The shape is the same
      whichever clients are asked for.

    Raises:
      IndexError: an id is not a client.
    """
    if not examples_per_client >= 1:
        raise ValueError(f"examples_per_client={examples_per_client} must be >= 1")
    clients = np.asarray(ids, dtype=np.int64).reshape(-1)
    if clients.size and not (clients.min() >= 0 and clients.max() < data.population):
        raise IndexError(f"an id is not in [0, {data.population}): {clients.tolist()[:10]}")
    counts = np.minimum(data.counts[clients], examples_per_client)
    column = np.arange(examples_per_client)
    real = column < counts[:, None]
    rows = np.where(real, data.offsets[clients][:, None] + column, 0)
    x = scaled(data.features[rows], data.feature_scale)
    x[~real] = 0.0
    y = np.where(real, data.labels[rows], 0).astype(np.int32)
    return x, y, counts.astype(np.int32)
