"""All examples of a training as arrays, and the padded batches taken out of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tf_dpfl.protocol.interface import TARGET, ExampleInterface


@dataclass(frozen=True)
class CentralExamples:
    """Arrays [count, ...] by the names of an `ExampleInterface`, in its dtypes."""

    arrays: Mapping[str, NDArray[Any]]
    count: int

    @classmethod
    def of(cls, x: Any, y: Any, interface: ExampleInterface) -> CentralExamples:
        """Checks and converts what Keras' `fit` is given.

        Raises ValueError naming every array that does not fit.
        """
        names = [tensor.name for tensor in interface.inputs]
        given = dict(zip(names, _inputs(x, names)))
        given[TARGET] = y
        arrays, faults = {}, []
        for tensor in interface.tensors:
            array = np.asarray(given[tensor.name])
            if array.shape[1:] == (*tensor.shape, 1) and tensor.name == TARGET:
                array = array[..., 0]  # labels as a column, as Keras takes them
            if array.shape[1:] != tensor.shape or array.dtype.kind not in "biuf":
                faults.append(
                    f"{tensor.name} is {array.dtype} {array.shape}, it must be "
                    f"{tensor.dtype} (n, {', '.join(map(str, tensor.shape))})"
                )
            else:
                arrays[tensor.name] = np.asarray(array, tensor.dtype)
        counts = {name: len(array) for name, array in arrays.items()}
        if not faults and len(set(counts.values())) > 1:
            faults.append(f"the arrays have different numbers of examples: {counts}")
        if not faults and not min(counts.values()):
            faults.append("there is no example")
        if faults:
            raise ValueError("; ".join(faults))
        return cls(arrays, next(iter(counts.values())))

    def padded(
        self, rows: NDArray[np.int64], *, multiple: int
    ) -> tuple[dict[str, NDArray[Any]], NDArray[np.float32]]:
        """The examples `rows`, padded with zeros to a multiple, and float32 weights 1 and 0."""
        size = -(-len(rows) // multiple) * multiple
        batch = {}
        for name, array in self.arrays.items():
            values = np.zeros((size, *array.shape[1:]), array.dtype)
            np.take(array, rows, axis=0, out=values[: len(rows)], mode="clip")
            batch[name] = values
        return batch, (np.arange(size) < len(rows)).astype(np.float32)


def _inputs(x: Any, names: list[str]) -> list[Any]:
    """The inputs in the order of `names`: the model's, prefixed where there are several."""
    if isinstance(x, Mapping):
        short = [name.partition("_")[2] or name for name in names]
        if set(x) != set(short):
            raise ValueError(f"x has the inputs {sorted(x)}, the model {sorted(short)}")
        return [x[name] for name in short]
    found = list(x) if isinstance(x, (list, tuple)) and len(names) > 1 else [x]
    if len(found) != len(names):
        raise ValueError(f"x has {len(found)} inputs, the model {len(names)}")
    return found
