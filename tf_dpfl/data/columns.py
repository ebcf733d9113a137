"""The federated data set: every client's examples in shared columns."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tf_dpfl.protocol.examples import Examples, Int32, fitted
from tf_dpfl.protocol.interface import TARGET, ExampleInterface
from tf_dpfl.protocol.tensors import Float32


@dataclass(frozen=True, eq=False)
class FederatedData:
    """Clients and, apart from them, the test split.

    Client i has the rows offsets[i] to offsets[i+1] of every array.

    Attributes:
      inputs: by name, "x" or several "x_<name>"; uint8, int32 or float32
        [n, ...]. A uint8 value stands for value / `feature_scale`, so that
        images stay bytes in memory.
      target: int32 class ids or float32 values, [n, ...].
      offsets: int64 [population + 1], not decreasing, from 0 to n.
      feature_scale: > 0.
      classes: number of classes, at least 2; None where the target holds values.
      test: inputs and target "y" of the test split, scaled; [m, ...], m may be 0.
      client_names: one for each client, unique.
      description: plain JSON values that say what this is, for the run's record.
    """

    inputs: Mapping[str, NDArray[Any]]
    target: NDArray[Any]
    offsets: NDArray[np.int64]
    feature_scale: float
    classes: int | None
    test: Mapping[str, NDArray[Any]]
    client_names: tuple[str, ...]
    description: Mapping[str, Any] = field(default_factory=dict)

    @property
    def population(self) -> int:
        """Number of clients."""
        return len(self.offsets) - 1

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one example of the only input; () where there are several."""
        if len(self.inputs) > 1:
            return ()
        (features,) = self.inputs.values()
        return tuple(features.shape[1:])

    @property
    def outputs(self) -> int:
        """What a model's last layer needs: the classes, or the values of one target."""
        return math.prod(self.target.shape[1:]) if self.classes is None else self.classes

    @property
    def counts(self) -> NDArray[np.int64]:
        """How many examples each client has, [population]."""
        return np.diff(self.offsets)

    @property
    def test_examples(self) -> int:
        """How many examples the test split has."""
        return len(self.test[TARGET])

    def client(self, index: int) -> Examples:
        """Client `index`'s inputs and target "y" in stored order, scaled, [n, ...].

        Raises IndexError unless 0 <= index < population.
        """
        if not 0 <= index < self.population:
            raise IndexError(f"client {index} is not one of the {self.population}")
        return self._rows(slice(self.offsets[index], self.offsets[index + 1]))

    def fitted(self, interface: ExampleInterface) -> FederatedData:
        """The same data in the dtypes and shapes of a model's `interface`.

        Raises DataError when they do not fit; see `protocol.examples.fitted`.
        Bytes stay bytes.
        """
        stored = {**self.inputs, TARGET: self.target}
        asked = {tensor.name: tensor for tensor in interface.inputs}
        images = {
            name: array
            for name, array in self.inputs.items()
            if name in asked
            and array.dtype == np.uint8
            and asked[name].dtype == "float32"
            and array.shape[1:] == asked[name].shape
        }
        others = tuple(tensor for tensor in interface.inputs if tensor.name not in images)
        rest = fitted(stored, replace(interface, inputs=others), where="the clients' examples")
        target = rest.pop(TARGET)
        return replace(
            self,
            inputs={name: {**images, **rest}[name] for name in asked},
            target=target,
            test=fitted(self.test, interface, where="the test split"),
        )

    def _rows(self, rows: Any) -> Examples:
        examples = {
            name: scaled(array[rows], self.feature_scale) for name, array in self.inputs.items()
        }
        return {**examples, TARGET: np.array(self.target[rows])}


def scaled(features: NDArray[Any], feature_scale: float) -> NDArray[Any]:
    """A new array: bytes / `feature_scale` in float32, other numbers as they are."""
    if features.dtype != np.uint8:
        return np.array(features)
    result: Float32 = features.astype(np.float32) / np.float32(feature_scale)
    return result


def padded_clients(
    data: FederatedData, ids: Sequence[int] | NDArray[Any], examples_per_client: int
) -> tuple[Examples, Int32]:
    """The examples of k clients as arrays of one size, padded with zeros.

    Args:
      data: the data set.
      ids: k client indices in [0, population); k may be 0.
      examples_per_client: of each client only the first so many are taken.

    Returns:
      Inputs and target "y", [k, examples_per_client, ...] each, and counts int32
      [k]: row i's first counts[i] examples are its client's, in stored order.
      The shape is the same whichever clients are asked for.

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
    examples = data._rows(np.where(real, data.offsets[clients][:, None] + column, 0))
    for array in examples.values():
        array[~real] = 0
    return examples, counts.astype(np.int32)
