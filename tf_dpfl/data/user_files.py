"""A user's own data as files: one `.npz` per client, or one CSV with a client column."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tf_dpfl.data.columns import FederatedData
from tf_dpfl.protocol.errors import DataError
from tf_dpfl.protocol.examples import Examples, read_arrays
from tf_dpfl.protocol.files import write_atomically
from tf_dpfl.protocol.interface import INPUT, TARGET
from tf_dpfl.protocol.tensors import Float32

_LARGEST_LABEL = int(np.iinfo(np.int32).max)


@dataclass(frozen=True, eq=False)
class ClientExamples:
    """One client's inputs and target by name, [n, ...] each, in stored order."""

    name: str
    examples: Examples


def read_client_folder(
    folder: Path, *, input_shape: tuple[int, ...] | None, values: bool = False, limit: int
) -> list[ClientExamples]:
    """The clients of a folder: every `*.npz` in it is one, named by its file.

    Args:
      folder: searched without its subfolders; other files are left alone.
      input_shape: shape of one example of the only input `x`; None takes names
        and shapes from the first file.
      values: whether `y` holds values and not class ids.
      limit: of each client at most so many examples, the first ones.

    Returns:
      The clients in the order of their names.

    Raises:
      DataError: naming the file, on the first that `read_arrays` refuses; or
        when there is none.
    """
    if not folder.is_dir():
        raise DataError(f"data.path={folder} is not a folder of .npz files, one for each client")
    clients: list[ClientExamples] = []
    shapes = None if input_shape is None else {INPUT: input_shape}
    for path in client_paths(folder):
        examples = read_arrays(path, shapes=shapes, values=values, limit=limit)
        shapes = {name: array.shape[1:] for name, array in examples.items()}
        clients.append(ClientExamples(path.stem, examples))
    if not clients:
        raise DataError(f"data.path={folder} has no .npz file; write one for each client")
    return clients


def client_paths(folder: Path) -> list[Path]:
    """The files of a folder that are clients, in the order of their names."""
    return sorted(folder.glob("*.npz"))


def read_client_csv(
    path: Path,
    *,
    client_column: str,
    label_column: str,
    input_shape: tuple[int, ...],
    values: bool = False,
    limit: int,
) -> list[ClientExamples]:
    """The clients of a CSV file in UTF-8 with a header line.

    Every column but the two named is a feature; in the file's order they fill
    `input_shape` row by row (C order).

    Args:
      path: the file.
      client_column: the column that says whose the example is.
      label_column: the column with the class id, an integer >= 0, or the value.
      input_shape: shape of one example.
      values: whether the label column holds values and not class ids.
      limit: of each client at most so many examples, the first ones.

    Returns:
      The clients in the order of their names.

    Raises:
      DataError: naming file and line, on the first fault: a missing or repeated
        column, too few or too many cells, a cell that is not a finite number, a
        class id that is not an integer in range, an empty client.
    """
    features: dict[str, list[Float32]] = {}
    labels: dict[str, list[float]] = {}
    rows = _rows(path)
    header_line, header = next(rows, (1, []))
    client_at, label_at = _columns(
        f"{path}:{header_line}", header, client_column, label_column, input_shape
    )
    for line, row in rows:
        where = f"{path}:{line}"
        if len(row) != len(header):
            raise DataError(f"{where}: {len(row)} cells, the header has {len(header)} columns")
        name = row[client_at].strip()
        if not name:
            raise DataError(f'{where}: column "{client_column}" is empty; it must name a client')
        cell = row[label_at]
        label = _features(where, [cell])[0] if values else _label(where, label_column, cell)
        cells = [cell for at, cell in enumerate(row) if at not in (client_at, label_at)]
        example = _features(where, cells)
        if len(labels.setdefault(name, [])) < limit:
            labels[name].append(label)
            features.setdefault(name, []).append(example)
    if not labels:
        raise DataError(f"{path}: has no examples below its header")
    return [
        ClientExamples(
            name,
            {
                INPUT: np.stack(features[name]).reshape(-1, *input_shape),
                TARGET: np.array(labels[name], np.float32 if values else np.int32),
            },
        )
        for name in sorted(labels)
    ]


def write_client_files(data: FederatedData, folder: Path, *, clients: Sequence[int]) -> list[Path]:
    """Writes `client_NNNNNN.npz` (inputs and `y`) for each index in `clients`.

    The folder is made when it is missing. Each file is what `read_examples`
    reads back, value for value. Returns the paths in the order of `clients`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for index in clients:
        paths.append(folder / f"client_{index:06d}.npz")
        _write_npz(paths[-1], data.client(index))
    return paths


def write_test_file(data: FederatedData, path: Path) -> None:
    """Writes the test split (inputs and `y`) to `path`, for evaluation alone.

    Raises DataError when the data have no test split.
    """
    if not data.test_examples:
        raise DataError("the data have no test split; set data.test_path")
    path.parent.mkdir(parents=True, exist_ok=True)
    _write_npz(path, data.test)


def _write_npz(path: Path, examples: Mapping[str, NDArray[Any]]) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, **examples)
    write_atomically(path, buffer.getbuffer())


def _rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Line number and cells of every line that is not blank."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, strict=True)
            while True:
                try:
                    row = next(reader)
                except StopIteration:
                    return
                except (csv.Error, UnicodeDecodeError) as error:
                    line = reader.line_num + isinstance(error, UnicodeDecodeError)
                    raise DataError(f"{path}:{line}: not CSV in UTF-8: {error}") from None
                if row:
                    yield reader.line_num, row
    except OSError as error:
        raise DataError(f"data.path={path} can not be read: {error.strerror}") from None


def _columns(
    where: str,
    header: Sequence[str],
    client_column: str,
    label_column: str,
    input_shape: tuple[int, ...],
) -> tuple[int, int]:
    """Positions of the two named columns, after the header was checked."""
    names = [name.strip() for name in header]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise DataError(f"{where}: column {repeated[0]!r} is there more than once")
    for key, column in (("client_column", client_column), ("label_column", label_column)):
        if column not in names:
            known = ", ".join(names[:8])
            raise DataError(f'{where}: no column "{column}" (data.{key}); the first are: {known}')
    if client_column == label_column:
        raise DataError(f'{where}: client and label are both column "{client_column}"')
    features = len(names) - 2
    if features != math.prod(input_shape):
        raise DataError(
            f"{where}: {features} feature columns do not fill data.feature_shape="
            f"{list(input_shape)}, which needs {math.prod(input_shape)}"
        )
    return names.index(client_column), names.index(label_column)


def _label(where: str, column: str, cell: str) -> int:
    text = cell.strip()
    # int() would also take "1_0" and digits of other scripts.
    if not (text.isascii() and text.isdigit() and int(text[:11]) <= _LARGEST_LABEL):
        raise DataError(
            f"{where}: {column}={text[:40]!r} must be a class id, an integer >= 0 "
            f"and <= {_LARGEST_LABEL}"
        )
    return int(text)


def _features(where: str, cells: Sequence[str]) -> Float32:
    try:
        with np.errstate(over="ignore"):  # too large for float32: infinite, refused below
            values = np.array([float(cell) for cell in cells]).astype(np.float32)
    except ValueError as error:
        raise DataError(f"{where}: {error}; every feature must be a number") from None
    if any("_" in cell for cell in cells) or not np.isfinite(values).all():
        bad = next(
            cell for cell, value in zip(cells, values) if "_" in cell or not np.isfinite(value)
        )
        raise DataError(f"{where}: {bad.strip()[:40]!r} must be a finite float32 number")
    return values
