"""The record store: a folder of raw columns that processes map into memory and read by user.

`store.json` says what is there; every column is one file of nothing but its bytes,
little-endian in C order, so that TensorFlow can map it as a tensor. Opening reads
the header and checks sizes: it takes as long for a million users as for one.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from tf_dpfl.data.columns import ColumnFiles, FederatedData
from tf_dpfl.protocol.errors import DataError
from tf_dpfl.protocol.files import sha256_hex, sync_folder, write_atomically
from tf_dpfl.protocol.interface import INPUT, TARGET

FORMAT = "tf-dpfl record store"
STORE_VERSION = 1
HEADER_FILE = "store.json"

# Digests of all columns are checked when the store is opened up to this size; it
# takes some seconds. Of a larger one the sizes, offsets and header are.
CHECKED_BYTES = 2**31

_DTYPES = {"uint8": np.uint8, "int32": np.int32, "float32": np.float32, "int64": np.int64}
_OFFSETS = "offsets"
_NAME = re.compile(r"(y|x(_[A-Za-z0-9_.\-]{1,100})?)\Z")
_CHUNK_BYTES = 2**24


class NumberedNames(Sequence[str]):
    """The names "0000" to "n - 1" of clients that have no others; nothing is kept."""

    def __init__(self, count: int):
        self._count, self._width = count, len(str(max(count - 1, 0)))

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self._count))]
        if not -self._count <= index < self._count:
            raise IndexError(f"client {index} is not one of the {self._count}")
        return f"{index % self._count:0{self._width}d}"


class StoreWriter:
    """Writes a store user by user; memory holds what one call of `add` is given.

    Use as a context manager: the folder appears whole at the end, or not at all.

    Args:
      folder: must not exist, or be empty.
      columns: dtype and shape of one example of every input and of the target "y".
      feature_scale: what a uint8 value is divided by, > 0.
      classes: number of classes, at least 2; None where the target holds values.
      test: inputs and target of the test split as in `FederatedData.test`, or None.
      description: plain JSON values for the run's record.
    """

    def __init__(
        self,
        folder: Path,
        *,
        columns: Mapping[str, tuple[Any, tuple[int, ...]]],
        feature_scale: float,
        classes: int | None,
        test: Mapping[str, NDArray[Any]] | None = None,
        description: Mapping[str, Any] | None = None,
    ):
        if sys.byteorder != "little":
            raise DataError("a store is little-endian; this machine is not")
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise DataError(f"{folder}: exists already; name a new folder for the store")
        if (INPUT in columns and len(columns) != 2) or TARGET not in columns or len(columns) < 2:
            raise DataError(f"a store has inputs and {TARGET}, not {sorted(columns)}")
        self._folder = folder
        self._temporary = folder.with_name(f".{folder.name}.{os.urandom(6).hex()}.tmp")
        self._columns = {
            name: (_dtype(name, dtype), tuple(shape)) for name, (dtype, shape) in columns.items()
        }
        self._about = {
            "feature_scale": float(feature_scale),
            "classes": classes,
            "description": dict(description or {}),
        }
        self._test = dict(test or {})
        self._files: dict[str, IO[bytes]] = {}
        self._digests: dict[str, Any] = {}
        self._rows = self._users = 0

    def __enter__(self) -> StoreWriter:
        self._temporary.parent.mkdir(parents=True, exist_ok=True)
        self._temporary.mkdir(mode=0o700)  # people's data
        for name in (*self._columns, _OFFSETS):
            self._files[name] = open(self._temporary / f"{name}.bin", "wb")
            self._digests[name] = hashlib.sha256()
        self._put(_OFFSETS, np.zeros(1, np.int64))
        return self

    def add(self, examples: Mapping[str, NDArray[Any]], counts: Sequence[int] | Any) -> None:
        """Adds users: user i has the next counts[i] rows of every array.

        Raises DataError when arrays are missing, or of other dtypes, shapes or
        lengths than were announced, or values are not finite.
        """
        sizes = np.asarray(counts, np.int64).reshape(-1)
        rows = int(sizes.sum())
        if len(sizes) and not sizes.min() >= 0:
            raise DataError(f"a user has {sizes.min()} examples; it must be 0 or more")
        for name, (dtype, shape) in self._columns.items():
            array = examples[name] if name in examples else np.zeros(0)
            if array.dtype != dtype or array.shape != (rows, *shape):
                raise DataError(
                    f"{name} is {array.dtype} {list(array.shape)}; the store takes "
                    f"{np.dtype(dtype).name} {[rows, *shape]} here"
                )
            if dtype.kind == "f" and not np.isfinite(array).all():
                raise DataError(f"{name} has a NaN or infinite value; every one must be finite")
        for name in self._columns:
            self._put(name, examples[name])
        self._put(_OFFSETS, self._rows + np.cumsum(sizes))
        self._rows, self._users = self._rows + rows, self._users + len(sizes)

    def __exit__(self, kind: Any, *_: Any) -> None:
        try:
            for file in self._files.values():
                file.flush()
                os.fsync(file.fileno())
                file.close()
            if kind is None:
                self._finish()
        finally:
            shutil.rmtree(self._temporary, ignore_errors=True)

    def _put(self, name: str, array: NDArray[Any]) -> None:
        for piece in _pieces(np.ascontiguousarray(array)):
            self._files[name].write(piece)
            self._digests[name].update(piece)

    def _finish(self) -> None:
        if not self._rows:
            raise DataError(f"{self._folder}: a store without an example cannot be trained on")
        entries = {
            name: _entry(dtype, (self._rows, *shape), self._digests[name].hexdigest())
            for name, (dtype, shape) in self._columns.items()
        }
        offsets = _entry(np.int64, (self._users + 1,), self._digests[_OFFSETS].hexdigest())
        tests = {}
        for name, array in self._test.items():
            content = np.ascontiguousarray(array).tobytes()
            write_atomically(self._temporary / f"test_{name}.bin", content, mode=0o600)
            tests[name] = _entry(array.dtype, array.shape, sha256_hex(content))
        body = {"columns": entries, "offsets": offsets, "test": tests, **self._about}
        header = {"format": FORMAT, "version": STORE_VERSION, "sha256": _digest(body), **body}
        content = json.dumps(header, indent=1).encode()
        write_atomically(self._temporary / HEADER_FILE, content, mode=0o600)
        if self._folder.exists():
            self._folder.rmdir()  # empty, or it was refused
        os.replace(self._temporary, self._folder)
        sync_folder(self._folder.parent)


def write_store(data: FederatedData, folder: Path) -> None:
    """Writes `data`, of whatever source, as a store. Raises DataError."""
    arrays = {**data.inputs, TARGET: data.target}
    with StoreWriter(
        folder,
        columns={name: (array.dtype, array.shape[1:]) for name, array in arrays.items()},
        feature_scale=data.feature_scale,
        classes=data.classes,
        test=data.test,
        description=data.description,
    ) as writer:
        for users in _batches(data):
            rows = slice(int(data.offsets[users.start]), int(data.offsets[users.stop]))
            writer.add(
                {name: np.asarray(array[rows]) for name, array in arrays.items()},
                np.diff(data.offsets[users.start : users.stop + 1]),
            )


def _batches(data: FederatedData, users: int = 4096) -> Iterator[slice]:
    for start in range(0, data.population, users):
        yield slice(start, min(start + users, data.population))


def open_store(folder: Path) -> FederatedData:
    """The data of a store, mapped into memory and not read.

    Guarantees: header, sizes and offsets are whole; up to CHECKED_BYTES every
    column's digest is checked too.

    Raises:
      DataError: no store, another version, or a damaged one, naming the file.
    """
    header, content = _read_header(folder)
    columns = {
        name: _mapped(folder / f"{name}.bin", entry) for name, entry in header["columns"].items()
    }
    offsets = _mapped(folder / f"{_OFFSETS}.bin", header["offsets"])
    tests = {
        name: _mapped(folder / f"test_{name}.bin", entry) for name, entry in header["test"].items()
    }
    total = sum(array.nbytes for array in columns.values())
    checked = {_OFFSETS: (offsets, header["offsets"])}
    if total <= CHECKED_BYTES:
        checked |= {name: (array, header["columns"][name]) for name, array in columns.items()}
        checked |= {f"test_{n}": (array, header["test"][n]) for n, array in tests.items()}
    for name, (array, entry) in checked.items():
        if _array_digest(array) != entry["sha256"]:
            raise DataError(
                f"{folder / name}.bin: is damaged: its bytes are not those that were written; "
                "make the store again"
            )
    target = columns.pop(TARGET)
    rows = {len(array) for array in (*columns.values(), target)}
    if offsets.shape[0] < 2 or rows != {int(offsets[-1])} or (np.diff(offsets) < 0).any():
        raise DataError(f"{folder}: offsets and columns do not fit; make the store again")
    return FederatedData(
        inputs=columns,
        target=target,
        offsets=offsets,
        feature_scale=header["feature_scale"],
        classes=header["classes"],
        test=tests or {name: array[:0] for name, array in {**columns, TARGET: target}.items()},
        client_names=NumberedNames(len(offsets) - 1),
        description=header["description"],
        files=ColumnFiles(
            columns={name: str((folder / f"{name}.bin").resolve()) for name in (*columns, TARGET)},
            offsets=str((folder / f"{_OFFSETS}.bin").resolve()),
            header=(str((folder / HEADER_FILE).resolve()), content),
        ),
    )


def _read_header(folder: Path) -> tuple[dict[str, Any], bytes]:
    path = folder / HEADER_FILE
    try:
        content = path.read_bytes()
        header = json.loads(content)
    except OSError as error:
        raise DataError(
            f"{path}: {error.strerror}; data.path must be a store (dpfl data store)"
        ) from None
    except (ValueError, RecursionError):
        raise DataError(f"{path}: is damaged: not JSON; make the store again") from None
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise DataError(f"{path}: is not the header of a store; make one with dpfl data store")
    if header.get("version") != STORE_VERSION:
        raise DataError(
            f"{path}: version {header.get('version')!r:.40} is not readable here; this release "
            f"reads version {STORE_VERSION}: make the store again"
        )
    body = {k: v for k, v in header.items() if k not in ("format", "version", "sha256")}
    if header.get("sha256") != _digest(body):
        raise DataError(f"{path}: is damaged: its digest does not fit; make the store again")
    for name in (*body["columns"], *body["test"]):
        if not _NAME.match(name):
            raise DataError(f"{path}: column {name!r:.80} has no name of an example's tensor")
    return header, content


def _mapped(path: Path, entry: Mapping[str, Any]) -> NDArray[Any]:
    dtype = np.dtype(_DTYPES[entry["dtype"]])
    shape = tuple(entry["shape"])
    size = math.prod(shape) * dtype.itemsize
    try:
        held = path.stat().st_size
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; the store is damaged: make it again") from None
    if held != size:
        raise DataError(
            f"{path}: holds {held} bytes where its header says {size}; the store is damaged: "
            "make it again"
        )
    if size == 0:
        return np.zeros(shape, dtype)
    return np.memmap(path, dtype, "r", shape=shape)


def _array_digest(array: NDArray[Any]) -> str:
    digest = hashlib.sha256()
    for piece in _pieces(array):
        digest.update(piece)
    return digest.hexdigest()


def _pieces(array: NDArray[Any]) -> Iterator[memoryview]:
    """The bytes of a contiguous array, some at a time."""
    flat = array.reshape(-1).view(np.uint8) if array.size else np.zeros(0, np.uint8)
    for start in range(0, len(flat), _CHUNK_BYTES):
        yield flat[start : start + _CHUNK_BYTES].data


def _entry(dtype: Any, shape: Sequence[int], sha256: str) -> dict[str, Any]:
    return {"dtype": np.dtype(dtype).name, "shape": [int(n) for n in shape], "sha256": sha256}


def _digest(body: Mapping[str, Any]) -> str:
    return sha256_hex(json.dumps(body, sort_keys=True).encode())


def _dtype(name: str, dtype: Any) -> Any:
    if np.dtype(dtype).name not in _DTYPES:
        raise DataError(f"{name} is {np.dtype(dtype).name}; a store takes {', '.join(_DTYPES)}")
    return np.dtype(dtype)
