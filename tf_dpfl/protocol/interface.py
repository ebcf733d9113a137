"""What one example of a task looks like: the tensors of its inputs and its target.

The names serve three times: as inputs of the TFLite signatures, as keys of a
batch, and as names of the arrays in a file of examples. A model of one input
calls it `x`; several are `x_<name of the Keras input>`. The target is `y`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tf_dpfl.protocol.checks import LARGEST_INTEGER
from tf_dpfl.protocol.errors import TaskError

FLOAT32 = "float32"
INT32 = "int32"
DTYPES = (FLOAT32, INT32)

INPUT = "x"
TARGET = "y"


def input_names(of_model: Sequence[str]) -> list[str]:
    """The names of a model's inputs here, from those of its Keras inputs, in their order."""
    return [INPUT] if len(of_model) == 1 else [f"{INPUT}_{name}" for name in of_model]


@dataclass(frozen=True)
class ExampleTensor:
    """One tensor of an example: its `shape` is without the batch, () for a number."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; read back by `from_json`."""
        return {"name": self.name, "dtype": self.dtype, "shape": list(self.shape)}

    @classmethod
    def from_json(cls, entry: Any, *, where: str) -> ExampleTensor:
        """Raises TaskError unless `entry` is what `to_json` writes."""
        if not isinstance(entry, Mapping) or set(entry) != {"name", "dtype", "shape"}:
            raise TaskError(f"{where}: {entry!r:.80} needs a name, a dtype and a shape")
        name, dtype = entry["name"], entry["dtype"]
        if not isinstance(name, str) or not name:
            raise TaskError(f"{where}: name={name!r:.80} must be a non-empty string")
        if dtype not in DTYPES:
            raise TaskError(f"{where}: dtype={dtype!r:.80} must be {' or '.join(DTYPES)}")
        return cls(name, dtype, _shape(entry["shape"], where))


@dataclass(frozen=True)
class ExampleInterface:
    """Inputs, target and prediction of a model, for one example.

    `random_values` is how many uniform float32 values in [0, 1) one example of
    a training batch consumes (the Dropout family); 0 without random layers.
    """

    inputs: tuple[ExampleTensor, ...]
    target: ExampleTensor
    output_shape: tuple[int, ...]
    random_values: int = 0

    @property
    def tensors(self) -> tuple[ExampleTensor, ...]:
        """The inputs, then the target."""
        return (*self.inputs, self.target)

    @property
    def classes(self) -> int | None:
        """How many class ids the target may take; None where it holds values."""
        return self.output_shape[-1] if self.target.dtype == INT32 else None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; read back by `from_json`."""
        return {
            "inputs": [tensor.to_json() for tensor in self.inputs],
            "target": self.target.to_json(),
            "output_shape": list(self.output_shape),
            "random_values": self.random_values,
        }

    @classmethod
    def from_json(cls, tree: Any) -> ExampleInterface:
        """Raises TaskError unless `tree` is what `to_json` writes."""
        keys = {"inputs", "target", "output_shape", "random_values"}
        if not isinstance(tree, Mapping) or set(tree) != keys:
            raise TaskError(f"interface {tree!r:.80} must be an object with {sorted(keys)}")
        if not isinstance(tree["inputs"], list) or not tree["inputs"]:
            raise TaskError("interface.inputs must be a non-empty list of tensors")
        inputs = tuple(
            ExampleTensor.from_json(entry, where=f"interface.inputs[{index}]")
            for index, entry in enumerate(tree["inputs"])
        )
        target = ExampleTensor.from_json(tree["target"], where="interface.target")
        names = [tensor.name for tensor in (*inputs, target)]
        if len(set(names)) != len(names) or target.name != TARGET:
            raise TaskError(f"interface: the names {names!r:.200} must differ and end in {TARGET}")
        values = tree["random_values"]
        if type(values) is not int or not 0 <= values <= LARGEST_INTEGER:
            raise TaskError(f"interface.random_values={values!r:.80} must be an integer >= 0")
        return cls(inputs, target, _shape(tree["output_shape"], "interface.output_shape"), values)


def _shape(value: Any, where: str) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(
        type(size) is int and 0 < size <= LARGEST_INTEGER for size in value
    ):
        raise TaskError(f"{where}: shape {value!r:.80} must be a list of integers > 0")
    return tuple(value)
