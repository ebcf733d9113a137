"""Reading one client's examples from an `.npz` file that nobody vouches for.

A file has one array for each tensor of an example, each [n, ...]: `x` (or, where
a model has several inputs, `x_<name>` for each) and `y`, class ids or values.
What the headers claim is held against the bytes that are there before anything
is allocated, and nothing is ever unpickled.
"""

from __future__ import annotations

import math
import os
import stat
import zipfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from tf_dpfl.protocol.errors import DataError
from tf_dpfl.protocol.interface import (
    FLOAT32,
    INPUT,
    TARGET,
    ExampleInterface,
    ExampleTensor,
)
from tf_dpfl.protocol.tensors import Float32

Int32 = NDArray[np.int32]
Examples = dict[str, NDArray[Any]]
"""Arrays by the names of `ExampleInterface`, float32 or int32, [n, ...] each."""

# Deflate can not expand its input by more than this (zlib's technical details).
_LARGEST_EXPANSION = 1032

# "b" bool, "i" and "u" integers, "f" real numbers.
_NUMERIC_KINDS = "biuf"

_INT32 = np.iinfo(np.int32)


def read_examples(path: Path, interface: ExampleInterface, *, limit: int | None = None) -> Examples:
    """The examples of one client for a task, in stored order.

    Args:
      path: an `.npz` file as `numpy.savez` or `numpy.savez_compressed` writes it;
        other arrays in it are left alone.
      interface: the names, shapes and dtypes that the task needs.
      limit: how many examples to keep, counted from the first; None keeps all.

    Returns:
      One array for each tensor of the interface, of its dtype and shape behind
      n >= 1: floats are finite, class ids in [0, classes). An array [n] is taken
      for one of shape (1,). Numbers are never scaled; float32 takes every number
      (rounded), int32 only whole ones in its range.

    Raises:
      DataError: the file is missing, not a zip, lacks an array, holds pickled
        objects or other types than numbers, claims more than it holds, has
        different lengths, no examples, or what `fitted` refuses.
    """
    wanted = {tensor.name: tensor.shape for tensor in interface.tensors}
    stored = _read_file(path, lambda _names: list(wanted), wanted, limit)
    return fitted(stored, interface, where=str(path))


def read_arrays(
    path: Path,
    *,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    values: bool = False,
    limit: int | None = None,
) -> Examples:
    """The examples of one client as stored, for a model that is not known yet.

    Args:
      path: as for `read_examples`.
      shapes: names and shapes that one example must have; None takes `x` or
        every `x_<name>`, and `y`, of any shape. Without the entry `y` the
        target's shape is free.
      values: whether `y` holds values and not class ids.
      limit: as for `read_examples`.

    Returns:
      Inputs as int32 where the file has integers that fit, float32 otherwise;
      `y` as int32 >= 0 or, with `values`, float32. All floats are finite.

    Raises:
      DataError: as `read_examples`.
    """
    stored = _read_file(path, lambda names: _names(path, names, shapes), shapes or {}, limit)
    where = f"{path}: {TARGET}"
    target = stored.pop(TARGET)
    examples = {name: _as_stored(f"{path}: {name}", array) for name, array in stored.items()}
    examples[TARGET] = floats(where, target) if values else integers(where, target, at_least=0)
    return examples


def fitted(
    arrays: Mapping[str, NDArray[Any]], interface: ExampleInterface, *, where: str
) -> Examples:
    """`arrays` in the dtypes and shapes of `interface`.

    Raises:
      DataError: beginning with `where`: an array is missing, has another shape,
        NaN or infinite values, fractions or numbers beyond int32 where integers
        are needed, or class ids out of range.
    """
    examples: Examples = {}
    for tensor in interface.tensors:
        if tensor.name not in arrays:
            raise DataError(f"{where}: array {tensor.name} is missing; it holds {sorted(arrays)}")
        array = arrays[tensor.name]
        _check_shape(where, tensor.name, array.shape, tensor.shape)
        classes = interface.classes if tensor is interface.target else None
        shaped = array.reshape(len(array), *tensor.shape)
        examples[tensor.name] = _cast(f"{where}: {tensor.name}", shaped, tensor, classes)
    return examples


def _cast(
    where: str, array: NDArray[Any], tensor: ExampleTensor, classes: int | None
) -> NDArray[Any]:
    if tensor.dtype == FLOAT32:
        return floats(where, array)
    if classes is None:
        return integers(where, array)
    return integers(where, array, at_least=0, at_most=classes - 1)


def floats(where: str, array: NDArray[Any]) -> Float32:
    """`array` as float32; DataError when a value is NaN, infinite or too large for it."""
    with np.errstate(over="ignore"):  # too large for float32: infinite, refused below
        result = np.ascontiguousarray(array, dtype=np.float32)
    if result is array or not result.flags.writeable:
        result = result.copy()
    finite = np.isfinite(result)
    if not finite.all():
        row = int(np.argwhere(~finite)[0][0])
        raise DataError(f"{where}[{row}] has a NaN or infinite value; every one must be finite")
    return result


def integers(
    where: str, array: NDArray[Any], *, at_least: int = _INT32.min, at_most: int = _INT32.max
) -> Int32:
    """`array` as int32; DataError unless all its numbers are whole and in range."""
    # float32 has no 2**31 - 1: as float64 every bound is exact.
    exact = array.astype(np.float64) if array.dtype.kind == "f" else array
    good = (exact >= at_least) & (exact <= at_most)
    if array.dtype.kind == "f":
        good &= np.floor(exact) == exact
    if not good.all():
        at = tuple(int(index) for index in np.argwhere(~good)[0])
        what = "a class id, an integer" if at_least == 0 else "an integer"
        raise DataError(
            f"{where}{list(at)}={array[at]} must be {what} from {at_least} to {at_most}"
        )
    return array.astype(np.int32)


def _as_stored(where: str, array: NDArray[Any]) -> NDArray[Any]:
    if array.dtype.kind != "f" and (array >= _INT32.min).all() and (array <= _INT32.max).all():
        return array.astype(np.int32)
    return floats(where, array)


def _names(path: Path, held: list[str], shapes: Mapping[str, tuple[int, ...]] | None) -> list[str]:
    """Which arrays are an example's, when no model says it."""
    if shapes is not None:
        return [*(name for name in shapes if name != TARGET), TARGET]
    several = sorted(name for name in held if name.startswith(f"{INPUT}_"))
    if INPUT in held and several:
        raise DataError(
            f"{path}: holds {INPUT} and {', '.join(several)}; a model's only input is {INPUT}, "
            f"several are {INPUT}_<name> each"
        )
    return [*(several or [INPUT]), TARGET]


def _read_file(
    path: Path,
    choose: Callable[[list[str]], list[str]],
    shapes: Mapping[str, tuple[int, ...]],
    limit: int | None,
) -> dict[str, NDArray[Any]]:
    """The arrays that `choose` picks of those in the file, at most `limit` rows each."""
    if limit is not None and not limit >= 1:
        raise ValueError(f"limit={limit} must be >= 1 or None")
    path = Path(path)
    try:
        with open(path, "rb", opener=_open_without_waiting) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise DataError(f"{path}: not a file; give an .npz with arrays x and y")
            return _read_archive(file, path, status.st_size, choose, shapes, limit)
    except DataError:
        raise
    except Exception as error:  # zipfile, zlib and NumPy raise a dozen kinds on broken bytes
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        words = " ".join(str(reason).split())[:200] or type(error).__name__
        raise DataError(f"{path}: can not be read as .npz: {words}") from None


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
    choose: Callable[[list[str]], list[str]],
    shapes: Mapping[str, tuple[int, ...]],
    limit: int | None,
) -> dict[str, NDArray[Any]]:
    """The arrays, at most `limit` rows of each, after all headers were checked."""
    with zipfile.ZipFile(file) as archive, ExitStack() as stack:
        infos = {info.filename: info for info in archive.infolist()}
        names = choose([name[:-4] for name in infos if name.endswith(".npy")])
        missing = [name for name in names if f"{name}.npy" not in infos]
        if missing:
            held = ", ".join(sorted(infos))[:200] or "nothing"
            raise DataError(
                f"{path}: array {' and '.join(missing)} is missing (it holds {held}); "
                f"write it with numpy.savez(path, {', '.join(f'{name}=...' for name in names)})"
            )
        headers: dict[str, _Header] = {}
        entries: dict[str, IO[bytes]] = {}
        for name in names:
            info = infos[f"{name}.npy"]
            _check_entry(info, path, name, file_bytes)
            entries[name] = stack.enter_context(archive.open(info))
            headers[name] = _read_header(entries[name], info, path, name)
        _check_shapes(path, headers, shapes)
        return {name: _read_rows(entries[name], headers[name], limit) for name in names}


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


def _check_shapes(
    path: Path, headers: Mapping[str, _Header], shapes: Mapping[str, tuple[int, ...]]
) -> None:
    rows = headers[TARGET].shape[:1]
    for name, header in sorted(headers.items(), key=lambda item: item[0] != TARGET):
        if not header.shape or 0 in header.shape[1:]:
            raise DataError(
                f"{path}: {name} has shape {list(header.shape)}; it must be [n, ...], "
                "at least one number an example"
            )
        if name == INPUT and name not in shapes and len(header.shape) < 2:
            raise DataError(
                f"{path}: {name} has shape {list(header.shape)}; it must be [n, ...features], "
                "at least one feature an example"
            )
        if name in shapes:
            _check_shape(str(path), name, header.shape, shapes[name])
        if header.shape[:1] != rows:
            raise DataError(
                f"{path}: {name} has {header.shape[0]} examples and {TARGET} "
                f"{rows[0]}; they must be as many"
            )
    if rows == (0,):
        raise DataError(f"{path}: has no examples; leave the file out")


def _check_shape(where: str, name: str, shape: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    """Raises DataError unless `shape` is [n, *wanted], or [n] for one number an example."""
    if shape[1:] != tuple(wanted) and not (len(shape) == 1 and tuple(wanted) == (1,)):
        raise DataError(
            f"{where}: one example has {name} of shape {list(shape[1:])}; "
            f"this task needs {list(wanted)}"
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
