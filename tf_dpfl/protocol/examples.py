"""Reading one client's examples from an `.npz` file that nobody vouches for.

A file has two arrays: `x`, numbers of shape [n, ...features], and `y`, class ids
of shape [n]. What the headers claim is held against the bytes that are there
before anything is allocated, and nothing is ever unpickled.
"""

from __future__ import annotations

import math
import os
import stat
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from tf_dpfl.protocol.errors import DataError
from tf_dpfl.protocol.tensors import Float32

Int32 = NDArray[np.int32]

# Deflate can not expand its input by more than this (zlib's technical details).
_LARGEST_EXPANSION = 1032

# "b" bool, "i" and "u" integers, "f" real numbers.
_NUMERIC_KINDS = "biuf"


def read_examples(
    path: Path,
    *,
    input_shape: tuple[int, ...] | None = None,
    classes: int | None = None,
    limit: int | None = None,
) -> tuple[Float32, Int32]:
    """The examples of one client, in stored order.

    Args:
      path: an `.npz` file as `numpy.savez` or `numpy.savez_compressed` writes it.
      input_shape: what one example's shape must be; None accepts any.
      classes: labels must be below it; None accepts any int32 >= 0.
      limit: how many examples to keep, counted from the first; None keeps all.

    Returns:
      `x` float32 [n, ...] as stored (never scaled) and `y` int32 [n], n >= 1,
      every `x` finite and every `y` in [0, classes).

    Raises:
      DataError: the file is missing, not a zip, lacks an array, holds pickled
        objects or other types than numbers, claims more than it holds, has
        different lengths, no examples, NaN or infinite features, labels that
        are fractional or out of range, or another shape than asked for.
    """
    if limit is not None and not limit >= 1:
        raise ValueError(f"limit={limit} must be >= 1 or None")
    path = Path(path)
    try:
        with open(path, "rb", opener=_open_without_waiting) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise DataError(f"{path}: not a file; give an .npz with arrays x and y")
            x, y = _read_archive(file, path, status.st_size, input_shape, limit)
    except DataError:
        raise
    except Exception as error:  # zipfile, zlib and NumPy raise a dozen kinds on broken bytes
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        words = " ".join(str(reason).split())[:200] or type(error).__name__
        raise DataError(f"{path}: can not be read as .npz: {words}") from None
    return _checked_features(path, x), _checked_labels(path, y, classes)


@dataclass(frozen=True)
class _Header:
    """What an entry says about its array, already held against its size."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran_order: bool


def _open_without_waiting(name: str, flags: int) -> int:
    # Opening a named pipe would otherwise wait for its writer for ever.
    return os.open(name, flags | getattr(os, "O_NONBLOCK", 0))


def _read_archive(
    file: IO[bytes],
    path: Path,
    file_bytes: int,
    input_shape: tuple[int, ...] | None,
    limit: int | None,
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Both arrays, at most `limit` rows of each, after all headers were checked."""
    with zipfile.ZipFile(file) as archive:
        entries = {info.filename: info for info in archive.infolist()}
        missing = [name for name in ("x", "y") if f"{name}.npy" not in entries]
        if missing:
            held = ", ".join(sorted(entries))[:200] or "nothing"
            raise DataError(
                f"{path}: array {' and '.join(missing)} is missing (it holds {held}); "
                "write it with numpy.savez(path, x=..., y=...)"
            )
        x_info, y_info = entries["x.npy"], entries["y.npy"]
        _check_entry(x_info, path, "x", file_bytes)
        _check_entry(y_info, path, "y", file_bytes)
        with archive.open(x_info) as x_entry, archive.open(y_info) as y_entry:
            x_header = _read_header(x_entry, x_info, path, "x")
            y_header = _read_header(y_entry, y_info, path, "y")
            _check_shapes(path, x_header, y_header, input_shape)
            x = _read_rows(x_entry, x_header, limit)
            y = _read_rows(y_entry, y_header, limit)
    return x, y


def _check_entry(info: zipfile.ZipInfo, path: Path, name: str, file_bytes: int) -> None:
    """Raises DataError when the archive says more of an entry than it can hold."""
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise DataError(f"{path}: {name} is compressed in a way that .npz does not use")
    expansion = 1 if info.compress_type == zipfile.ZIP_STORED else _LARGEST_EXPANSION
    if not info.compress_size <= file_bytes or not info.file_size <= expansion * info.compress_size:
        raise DataError(
            f"{path}: {name} claims {info.file_size} bytes, which a file of {file_bytes} "
            "bytes can not hold"
        )


def _read_header(entry: IO[bytes], info: zipfile.ZipInfo, path: Path, name: str) -> _Header:
    """The entry's header; DataError when its array is not what the entry holds."""
    npy: Any = np.lib.format  # typed in some of NumPy's versions only
    version = npy.read_magic(entry)
    if version != (1, 0):
        raise DataError(
            f"{path}: {name} is in .npy format {version[0]}.{version[1]}; "
            "numbers are written in 1.0 (numpy.savez)"
        )
    shape, fortran_order, dtype = npy.read_array_header_1_0(entry)
    if dtype.hasobject:
        raise DataError(f"{path}: {name} holds pickled objects; only arrays of numbers are read")
    if dtype.kind not in _NUMERIC_KINDS or dtype.subdtype is not None:
        raise DataError(f"{path}: {name} has dtype {dtype}; it must be an array of numbers")
    shape = tuple(int(size) for size in shape)
    if any(size < 0 for size in shape):
        raise DataError(f"{path}: {name} claims the shape {list(shape)}")
    claimed = math.prod(shape) * dtype.itemsize
    held = info.file_size - entry.tell()
    if claimed != held:
        raise DataError(
            f"{path}: {name} claims shape {list(shape)} of {dtype}, {claimed} bytes, "
            f"but holds {held} bytes"
        )
    return _Header(shape, dtype, fortran_order)


def _check_shapes(path: Path, x: _Header, y: _Header, input_shape: tuple[int, ...] | None) -> None:
    if len(y.shape) != 1:
        raise DataError(f"{path}: y has shape {list(y.shape)}; it must be [n], one id an example")
    if len(x.shape) < 2 or 0 in x.shape[1:]:
        raise DataError(
            f"{path}: x has shape {list(x.shape)}; it must be [n, ...features], "
            "at least one feature an example"
        )
    if x.shape[0] != y.shape[0]:
        raise DataError(
            f"{path}: x has {x.shape[0]} examples and y {y.shape[0]}; they must be as many"
        )
    if x.shape[0] == 0:
        raise DataError(f"{path}: has no examples; leave the file out")
    if input_shape is not None and x.shape[1:] != tuple(input_shape):
        raise DataError(
            f"{path}: one example has shape {list(x.shape[1:])}; "
            f"this task needs {list(input_shape)}"
        )


def _read_rows(entry: IO[bytes], header: _Header, limit: int | None) -> NDArray[Any]:
    """The first `limit` rows; in Fortran order rows are scattered, so all are read."""
    rows = header.shape[0]
    wanted = rows if limit is None else min(rows, limit)
    shape = header.shape if header.fortran_order else (wanted, *header.shape[1:])
    nbytes = math.prod(shape) * header.dtype.itemsize
    raw = entry.read(nbytes)
    if len(raw) != nbytes:
        raise EOFError(f"{len(raw)} bytes where {nbytes} were promised")
    flat = np.frombuffer(raw, dtype=header.dtype)
    return flat.reshape(shape, order="F" if header.fortran_order else "C")[:wanted]


def _checked_features(path: Path, x: NDArray[Any]) -> Float32:
    with np.errstate(over="ignore"):  # too large for float32: infinite, refused below
        features = np.ascontiguousarray(x, dtype=np.float32)
    if features is x or not features.flags.writeable:
        features = features.copy()
    finite = np.isfinite(features)
    if not finite.all():
        row = int(np.argwhere(~finite)[0][0])
        raise DataError(f"{path}: x[{row}] has a NaN or infinite feature; every one must be finite")
    return features


def _checked_labels(path: Path, y: NDArray[Any], classes: int | None) -> Int32:
    top = int(np.iinfo(np.int32).max) if classes is None else classes - 1
    good = (y >= 0) & (y <= top)
    if y.dtype.kind == "f":
        good &= np.floor(y) == y
    if not good.all():
        row = int(np.argmin(good))
        raise DataError(f"{path}: y[{row}]={y[row]} must be a class id, an integer from 0 to {top}")
    return y.astype(np.int32)
