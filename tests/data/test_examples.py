"""Reading one client's .npz: what it returns, and everything that is refused."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tf_dpfl.protocol.errors import DataError
from tf_dpfl.protocol.examples import read_arrays, read_examples
from tf_dpfl.protocol.interface import ExampleInterface, ExampleTensor

X = np.arange(24, dtype=np.float32).reshape(4, 3, 2)
Y = np.array([0, 2, 1, 2], np.int32)
TASK = ExampleInterface(
    (ExampleTensor("x", "float32", (3, 2)),), ExampleTensor("y", "int32", ()), (3,)
)


def npz(path: Path, *, compressed: bool = False, **arrays) -> Path:
    (np.savez_compressed if compressed else np.savez)(path, **arrays)
    return path


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def npy_header(shape: object, descr: str = "'<f4'", version: tuple[int, int] = (1, 0)) -> bytes:
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY" + bytes(version) + struct.pack("<H", len(text)) + text


def archive(path: Path, method: int = zipfile.ZIP_STORED, **entries: bytes) -> Path:
    with zipfile.ZipFile(path, "w", method) as file:
        for name, raw in entries.items():
            file.writestr(f"{name}.npy", raw)
    return path


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("dtype", ["u1", "i8", ">f8", "f2", "?"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_every_numeric_type_and_order_is_read_as_float32(tmp_path, compressed, dtype, order):
    stored = np.array(X % 2 if dtype == "?" else X, dtype=dtype, order=order)
    path = npz(tmp_path / "a.npz", compressed=compressed, x=stored, y=Y.astype("i8"))
    x, y = read_examples(path, TASK).values()
    assert (x.dtype, y.dtype) == (np.float32, np.int32)
    np.testing.assert_array_equal(x, stored.astype(np.float32))
    np.testing.assert_array_equal(y, Y)
    x[0] = 1.0  # the caller's own
    first, labels = read_arrays(path, limit=2).values()
    np.testing.assert_array_equal(first, stored[:2].astype(np.float32))
    np.testing.assert_array_equal(labels, Y[:2])
    assert len(read_arrays(path, limit=99)["y"]) == 4


def test_whole_numbers_in_a_float_array_are_labels(tmp_path):
    path = npz(tmp_path / "a.npz", x=X, y=Y.astype(np.float64))
    np.testing.assert_array_equal(read_arrays(path)["y"], Y)


def bad_value(value: float) -> np.ndarray:
    x = X.astype(np.float64)
    x[2, 1, 1] = value
    return x


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": X}, "array y is missing"),
        ({"y": Y}, "array x is missing"),
        ({"a": X}, "array x and y is missing"),
        ({"x": X, "y": Y[:3]}, "x has 4 examples and y 3"),
        ({"x": X[:0], "y": Y[:0]}, "has no examples"),
        ({"x": X[:, :0], "y": Y}, r"x has shape \[4, 0, 2\]"),
        ({"x": X[:, 0, 0], "y": Y}, r"x of shape \[\]; this task needs"),
        ({"x": np.float32(1), "y": Y}, r"x has shape \[\]"),
        ({"x": X, "y": Y[:, None]}, r"y of shape \[1\]; this task needs \[\]"),
        ({"x": bad_value(np.nan), "y": Y}, r"x\[2\] has a NaN"),
        ({"x": bad_value(np.inf), "y": Y}, r"x\[2\] has a NaN or infinite"),
        ({"x": bad_value(-np.inf), "y": Y}, r"x\[2\]"),
        ({"x": bad_value(1e39), "y": Y}, r"x\[2\]"),
        ({"x": X, "y": [0, -1, 1, 1]}, r"y\[1\]=-1 must be a class id, an integer from 0 to 2"),
        ({"x": X, "y": [0, 1, 3, 1]}, r"y\[2\]=3"),
        ({"x": X, "y": [0, 1, 1.5, 1]}, r"y\[2\]=1.5"),
        ({"x": X, "y": [0, 1, 1, np.nan]}, r"y\[3\]=nan"),
        ({"x": X, "y": [np.inf, 1, 1, 1]}, r"y\[0\]=inf"),
        ({"x": X, "y": np.array([1, 1, 1, 2**64 - 1], np.uint64)}, r"y\[3\]=18446744073709551615"),
        ({"x": X, "y": ["a", "b", "c", "d"]}, "y has dtype <U1"),
        ({"x": X.astype(complex), "y": Y}, "x has dtype complex"),
        ({"x": X[:, :2], "y": Y}, r"one example has x of shape \[2, 2\]; this task needs \[3, 2\]"),
    ],
)
def test_malformed_arrays_are_refused(tmp_path, arrays, message):
    path = npz(tmp_path / "a.npz", **arrays)
    with pytest.raises(DataError, match=message) as caught:
        read_examples(path, TASK)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_labels_without_classes_must_still_be_int32(tmp_path):
    path = npz(tmp_path / "a.npz", x=X, y=np.array([0, 1, 2, 2**31]))
    with pytest.raises(DataError, match="2147483648"):
        read_arrays(path)


class Boom:
    """Unpickling it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


def test_pickled_objects_are_never_loaded(tmp_path):
    trace = tmp_path / "was_unpickled"
    objects = np.array([Boom(str(trace))] * 4, dtype=object)
    for arrays in ({"x": objects, "y": Y}, {"x": X, "y": objects}):
        with pytest.raises(DataError, match="pickled objects"):
            read_arrays(npz(tmp_path / "a.npz", **arrays))
    structured = np.zeros(4, [("a", "f4"), ("b", "O")])
    with pytest.raises(DataError, match="pickled objects"):
        read_arrays(npz(tmp_path / "a.npz", x=structured, y=Y))
    assert not trace.exists()


CLAIMS = {
    "stored": (zipfile.ZIP_STORED, "(4000000000,1)"),
    "deflated": (zipfile.ZIP_DEFLATED, "(4000000000,1)"),
    "huge_integer": (zipfile.ZIP_STORED, f"({10**200},1)"),
    "negative": (zipfile.ZIP_STORED, "(-4,-1)"),
    "overflowing": (zipfile.ZIP_STORED, f"({2**32},{2**32})"),
}


@pytest.mark.parametrize("claim", CLAIMS)
def test_shape_larger_than_the_file_is_refused_before_anything_is_allocated(tmp_path, claim):
    method, shape = CLAIMS[claim]
    path = archive(tmp_path / "a.npz", method, x=npy_header(shape), y=npy(Y))
    assert path.stat().st_size < 1000
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match="claims"):
            read_arrays(path)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_lying_archive_directory_is_refused_before_anything_is_allocated(tmp_path, method):
    """Header, local entry and central directory all claim 4 GB that are not there."""
    raw = npy_header("(1000000000,1)")
    path = archive(tmp_path / "a.npz", method, x=raw, y=npy(Y))
    claimed = struct.pack("<I", len(raw) + 4_000_000_000)
    data = path.read_bytes()
    central = data.index(b"PK\x01\x02")
    data = data[: central + 24] + claimed + data[central + 28 :]
    data = data[:22] + claimed + data[26:]
    if method == zipfile.ZIP_STORED:
        data = data[: central + 20] + claimed + data[central + 24 :]
    path.write_bytes(data)
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match="can not hold"):
            read_arrays(path)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


def test_limit_reads_no_more_than_it_needs(tmp_path):
    path = npz(tmp_path / "a.npz", x=np.zeros((1000, 10000), np.uint8), y=np.zeros(1000, int))
    tracemalloc.start()
    try:
        read_arrays(path, limit=2)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_files_that_are_no_archive_are_refused(tmp_path):
    path = tmp_path / "a.npz"
    for raw in (b"", b"PK", b"\x00" * 1000, npy(X)):
        path.write_bytes(raw)
        with pytest.raises(DataError, match=r"can not be read as \.npz"):
            read_arrays(path)
    with pytest.raises(DataError, match="No such file"):
        read_arrays(tmp_path / "absent.npz")
    with pytest.raises(DataError, match=r"a directory|not a file"):
        read_arrays(tmp_path)
    os.mkfifo(tmp_path / "pipe.npz")
    with pytest.raises(DataError, match="not a file"):
        read_arrays(tmp_path / "pipe.npz")


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"not numpy",
        npy_header("(4,3,2)", version=(9, 0)),
        npy_header("(4,3,2)", version=(2, 0)),
        npy_header("'four'"),
        npy_header("(4,3,2)", descr="'<f99'"),
        npy_header("(4,3,2)", descr="'nonsense'"),
        npy_header("(" * 9000),
        npy_header("(4,3,2)")[:-20],
        npy(X)[:-1],
        npy(X) + b"\0",
    ],
)
def test_broken_array_headers_are_refused(tmp_path, raw):
    with pytest.raises(DataError):
        read_arrays(archive(tmp_path / "a.npz", x=raw, y=npy(Y)))


def test_other_compressions_are_refused(tmp_path):
    for method in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        with pytest.raises(DataError, match="compressed in a way"):
            read_arrays(archive(tmp_path / "a.npz", method, x=npy(X), y=npy(Y)))


def test_damaged_content_is_refused(tmp_path):
    path = npz(tmp_path / "a.npz", x=X, y=Y)
    data = bytearray(path.read_bytes())
    at = data.index(X.tobytes()[4:])
    data[at + 3] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match="CRC"):
        read_arrays(path)


@settings(max_examples=150)
@given(data=st.data(), compressed=st.booleans())
def test_no_damage_raises_anything_but_data_error(tmp_path_factory, data, compressed):
    path = npz(tmp_path_factory.mktemp("npz") / "a.npz", compressed=compressed, x=X, y=Y)
    raw = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(
        raw[: data.draw(st.integers(0, len(raw)))] if data.draw(st.booleans()) else raw
    )
    try:
        x, y = read_arrays(path).values()
    except DataError:
        return
    assert len(x) == len(y) >= 1
    assert np.isfinite(x).all()


@pytest.mark.parametrize("limit", [0, -1])
def test_limit_must_be_positive(tmp_path, limit):
    with pytest.raises(ValueError, match="limit"):
        read_arrays(npz(tmp_path / "a.npz", x=X, y=Y), limit=limit)


def test_the_reader_imports_no_tensorflow():
    code = (
        "import sys, tf_dpfl.protocol.examples; "
        "sys.exit(any(name.split('.')[0] in ('tensorflow', 'keras') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
