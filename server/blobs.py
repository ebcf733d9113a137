"""Blobs: vectors as files named by their digest, kept out of the database."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tf_dpfl.protocol.errors import StateError
from tf_dpfl.protocol.files import sha256_hex, write_atomically

Float64 = NDArray[np.float64]
SUM_DTYPE = np.dtype("<f8")


class BlobStore:
    """A folder of blobs. A blob is on disk, whole, before its name is returned."""

    def __init__(self, folder: Path):
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def put(self, data: bytes | memoryview) -> str:
        """Writes `data` durably (temporary file, fsync, rename, fsync of the folder)."""
        name = sha256_hex(data)
        write_atomically(self._folder / name, data)
        return name

    def get(self, name: str) -> bytes:
        """The blob's bytes; StateError when it is missing or damaged."""
        path = self._folder / name
        try:
            data = path.read_bytes()
        except OSError as error:
            raise StateError(f"{path}: the blob cannot be read: {error}") from None
        if sha256_hex(data) != name:
            raise StateError(f"{path}: the blob is damaged; restore the state from a backup")
        return data

    def put_vector(self, vector: Float64) -> str:
        """Writes a float64 vector of any shape [n]."""
        return self.put(np.ascontiguousarray(vector, dtype=SUM_DTYPE).view(np.uint8).data)

    def get_vector(self, name: str, *, size: int) -> Float64:
        """A float64 vector of shape [size]; read-only, over the file's bytes."""
        data = self.get(name)
        if len(data) != size * SUM_DTYPE.itemsize:
            raise StateError(f"blob {name}: {len(data)} bytes are not {size} float64 values")
        vector: NDArray[Any] = np.frombuffer(data, dtype=SUM_DTYPE)
        return vector.astype(np.float64, copy=False)

    def delete_all_but(self, keep: Collection[str]) -> None:
        """Removes what no row names any more, torn temporary files included."""
        for path in self._folder.iterdir():
            if path.name not in keep:
                path.unlink(missing_ok=True)
