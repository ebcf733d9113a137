"""The layout of a model's trainable weights inside one flat float32 vector."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tf_dpfl.protocol.checks import LARGEST_INTEGER
from tf_dpfl.protocol.errors import TaskError

Float32 = NDArray[np.float32]

# Little-endian on every machine: what is in files and on the wire.
WIRE_DTYPE = np.dtype("<f4")


@dataclass(frozen=True)
class TensorLayout:
    """Names and shapes of the trainable variables, in the order of the vector."""

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]

    @property
    def size(self) -> int:
        """Number of float32 entries of the flat vector."""
        return sum(math.prod(shape) for shape in self.shapes)

    @property
    def nbytes(self) -> int:
        """Bytes of the flat vector in files and on the wire."""
        return self.size * WIRE_DTYPE.itemsize

    def split(self, flat: Float32) -> list[Float32]:
        """Views of `flat` (shape [size]) as the single tensors."""
        if flat.shape != (self.size,):
            raise ValueError(f"flat has shape {flat.shape}, the layout needs ({self.size},)")
        tensors, start = [], 0
        for shape in self.shapes:
            stop = start + math.prod(shape)
            tensors.append(flat[start:stop].reshape(shape))
            start = stop
        return tensors

    def join(self, tensors: Sequence[Any]) -> Float32:
        """One flat float32 vector of `tensors`, whose shapes must be the layout's."""
        shapes = tuple(tuple(np.shape(tensor)) for tensor in tensors)
        if shapes != self.shapes:
            raise ValueError(f"tensors have shapes {shapes}, the layout needs {self.shapes}")
        return np.concatenate([np.asarray(t, dtype=np.float32).ravel() for t in tensors])

    def to_json(self) -> list[dict[str, Any]]:
        """Plain JSON values; read back by `from_json`."""
        return [
            {"name": name, "shape": list(shape)} for name, shape in zip(self.names, self.shapes)
        ]

    @classmethod
    def from_json(cls, entries: Any) -> TensorLayout:
        """Raises TaskError unless `entries` is what `to_json` writes."""
        names, shapes = [], []
        if not isinstance(entries, list) or not entries:
            raise TaskError("layout must be a non-empty list of tensors")
        for entry in entries:
            name = entry.get("name") if isinstance(entry, Mapping) else None
            shape = entry.get("shape") if isinstance(entry, Mapping) else None
            if not isinstance(name, str) or not isinstance(shape, list):
                raise TaskError(f"layout entry {entry!r:.80} needs a name and a shape")
            if not all(type(n) is int and 0 < n <= LARGEST_INTEGER for n in shape):
                raise TaskError(f"layout entry {name!r:.80} has the shape {shape!r:.80}")
            names.append(name)
            shapes.append(tuple(shape))
        return cls(tuple(names), tuple(shapes))


def vector_to_bytes(vector: Any) -> bytes:
    """Raw little-endian float32 of a vector of shape [d]."""
    return np.ascontiguousarray(vector, dtype=WIRE_DTYPE).tobytes()


def vector_from_bytes(raw: bytes | bytearray | memoryview, *, size: int) -> Float32:
    """A read-only view of `raw` as float32 of shape [size].

    Raises ValueError on a wrong length; nothing is allocated before the check.
    """
    expected = size * WIRE_DTYPE.itemsize
    if len(raw) != expected:
        raise ValueError(f"{len(raw)} bytes are not {size} float32 values ({expected} bytes)")
    vector = np.frombuffer(raw, dtype=WIRE_DTYPE).astype(np.float32, copy=False)
    vector.flags.writeable = False  # also over a bytearray
    return vector
