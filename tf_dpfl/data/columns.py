"""The federated data set: every client's examples in shared columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tf_dpfl.protocol.errors import DataError
from tf_dpfl.protocol.examples import Examples, fitted
from tf_dpfl.protocol.interface import INPUT, INT32, TARGET, ExampleInterface
from tf_dpfl.protocol.tensors import Float32


@dataclass(frozen=True)
class ColumnFiles:
    """Files that hold the raw bytes of a data set's columns, for readers in other processes.

    `columns`: path by name, of the inputs and the target "y"; `offsets`: a path.
    Each file is the array's bytes from its first on and nothing else. `header` is a
    file that says which data these are, and what it must hold; None where no other
    process could find other data under the same paths. `descriptors`: open files that
    a process must inherit to find the paths.
    """

    columns: Mapping[str, str]
    offsets: str
    header: tuple[str, bytes] | None = None
    descriptors: tuple[int, ...] = ()


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
      files: where the arrays' bytes are files too (a store, or memory that is
        shared); None where they are this process' alone.
    """

    inputs: Mapping[str, NDArray[Any]]
    target: NDArray[Any]
    offsets: NDArray[np.int64]
    feature_scale: float
    classes: int | None
    test: Mapping[str, NDArray[Any]]
    client_names: Sequence[str]
    description: Mapping[str, Any] = field(default_factory=dict)
    files: ColumnFiles | None = None

    @property
    def population(self) -> int:
        """Number of clients."""
        return len(self.offsets) - 1

    @property
    def input_shape(self) -> tuple[int, ...] | dict[str, tuple[int, ...]]:
        """Shape of one example of the only input; of several by the names of their arrays."""
        shapes = {name: tuple(array.shape[1:]) for name, array in self.inputs.items()}
        return shapes[INPUT] if list(shapes) == [INPUT] else shapes

    @property
    def outputs(self) -> int:
        """What a model's last layer needs: the classes, or the values of one target."""
        return self._output_shape[-1]

    @property
    def positions(self) -> tuple[int, ...]:
        """Sizes in front of the outputs, where an example has a target at every step."""
        return self._output_shape[:-1]

    @property
    def _output_shape(self) -> tuple[int, ...]:
        shape = tuple(self.target.shape[1:])
        return (shape or (1,)) if self.classes is None else (*shape, self.classes)

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
        Bytes stay bytes. Columns that are files stay as they are, and are cast where
        they are read; only what their dtypes and shapes say is checked.
        """
        if self.files is not None:
            check_columns(self, interface)
            return replace(
                self,
                inputs={tensor.name: self.inputs[tensor.name] for tensor in interface.inputs},
                test=fitted(self.test, interface, where="the test split"),
            )
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


def check_columns(data: FederatedData, interface: ExampleInterface) -> None:
    """Raises DataError unless a cast makes the columns what `interface` asks for."""
    where = "the clients' examples"
    stored = {**data.inputs, TARGET: data.target}
    for tensor in interface.tensors:
        if tensor.name not in stored:
            raise DataError(f"{where}: array {tensor.name} is missing; it holds {sorted(stored)}")
        array = stored[tensor.name]
        if array.shape[1:] != tensor.shape and not (array.ndim == 1 and tensor.shape == (1,)):
            raise DataError(
                f"{where}: one example has {tensor.name} of shape {list(array.shape[1:])}; "
                f"this task needs {list(tensor.shape)}"
            )
        if tensor.dtype == INT32 and array.dtype.kind == "f":
            raise DataError(
                f"{where}: {tensor.name} is {array.dtype}; it must be an integer array for this "
                "task: make the store again from data of integers"
            )
    if interface.classes is not None and (data.classes or 0) > interface.classes:
        raise DataError(
            f"{where}: {TARGET} has {data.classes} classes, the model {interface.classes}; "
            "build it with the data's classes"
        )


def scaled(features: NDArray[Any], feature_scale: float) -> NDArray[Any]:
    """A new array: bytes / `feature_scale` in float32, other numbers as they are."""
    if features.dtype != np.uint8:
        return np.array(features)
    result: Float32 = features.astype(np.float32) / np.float32(feature_scale)
    return result
