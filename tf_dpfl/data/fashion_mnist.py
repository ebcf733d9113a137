"""Finding Fashion-MNIST: in a named folder, then by Keras, then by Debian's package.

70,000 grey images of 28 x 28 in 10 classes of clothing (Xiao et al. 2017,
1708.07747). Whatever way the four files come, they are taken only when their
unpacked content has the digests written here.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import os
import socket
import tempfile
import urllib.request
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tf_dpfl.data.debian import unpack_package
from tf_dpfl.protocol.errors import DataError
from tf_dpfl.protocol.files import sha256_hex, write_atomically

FOLDER_VARIABLE = "DPFL_DATA"
CLASSES = 10

_PACKAGE = "dataset-fashion-mnist"
_PACKAGE_FOLDER = "usr/share/datasets/fashion-mnist"
_KERAS_URL = (
    "https://storage.googleapis.com/tensorflow/tf-keras-datasets/train-labels-idx1-ubyte.gz"
)

# Without a network the question whether there is one must not take long.
_PROBE_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class _File:
    """One of the four: content after gunzip. How it was zipped varies by origin."""

    name: str
    nbytes: int
    sha256: str
    header_bytes: int
    shape: tuple[int, ...]


_FILES = {
    "train_x": _File(
        "train-images-idx3-ubyte.gz",
        47040016,
        "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        16,
        (60000, 28, 28, 1),
    ),
    "train_y": _File(
        "train-labels-idx1-ubyte.gz",
        60008,
        "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        8,
        (60000,),
    ),
    "test_x": _File(
        "t10k-images-idx3-ubyte.gz",
        7840016,
        "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        16,
        (10000, 28, 28, 1),
    ),
    "test_y": _File(
        "t10k-labels-idx1-ubyte.gz",
        10008,
        "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
        8,
        (10000,),
    ),
}

FILE_NAMES = tuple(file.name for file in _FILES.values())


@dataclass(frozen=True, eq=False)
class FashionMnist:
    """Images uint8 [n, 28, 28, 1], labels uint8 [n], and the way they were found."""

    train_x: NDArray[np.uint8]
    train_y: NDArray[np.uint8]
    test_x: NDArray[np.uint8]
    test_y: NDArray[np.uint8]
    found: str


def find_fashion_mnist() -> FashionMnist:
    """The data set from the first way that works; see `ways`.

    Raises DataError naming every way and why it failed.
    """
    failures = []
    for name, way in ways():
        try:
            return FashionMnist(**_read_folder(way()), found=name)
        except (DataError, OSError) as error:
            failures.append(f"{name}: {error}")
    raise DataError(
        "Fashion-MNIST was not found. Put its four files ("
        + ", ".join(FILE_NAMES)
        + f") into a folder and name it in {FOLDER_VARIABLE}. Tried: "
        + "; ".join(failures)
    )


def ways() -> list[tuple[str, Callable[[], Path]]]:
    """Every way, in order: its name, and what makes its folder (or raises)."""
    return [
        (f"the folder in {FOLDER_VARIABLE}", _named_folder),
        ("the Keras cache", _keras_cache),
        ("Keras' download", _keras_download),
        ("the cache of Debian's package", package_cache),
        ("Debian's installed package", lambda: Path("/") / _PACKAGE_FOLDER),
        (f"Debian's package {_PACKAGE}", _debian_download),
    ]


def package_cache() -> Path:
    """Where this user's copy of Debian's files is kept (XDG base directories)."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    # The specification has relative paths ignored.
    root = Path(base) if os.path.isabs(base) else Path.home() / ".cache"
    return root / "tf_dpfl" / "fashion-mnist"


def _named_folder() -> Path:
    value = os.environ.get(FOLDER_VARIABLE, "")
    if not value:
        raise DataError("not set")
    folder = Path(value)
    inner = folder / "fashion-mnist"
    return inner if not (folder / FILE_NAMES[0]).is_file() and inner.is_dir() else folder


def _keras_cache() -> Path:
    return Path.home() / ".keras" / "datasets" / "fashion-mnist"


def _keras_download() -> Path:
    """Lets Keras fill its own cache; quiet, and quick to fail without a network."""
    try:
        request = urllib.request.Request(_KERAS_URL, method="HEAD")
        urllib.request.urlopen(request, timeout=_PROBE_TIMEOUT_S).close()
    except OSError as error:
        reason = getattr(error, "reason", error)
        raise DataError(f"no answer from its server: {reason}") from None
    import tensorflow as tf

    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_PROBE_TIMEOUT_S)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            tf.keras.datasets.fashion_mnist.load_data()
    except Exception as error:  # Keras raises a bare Exception when a fetch fails
        raise DataError(" ".join(str(error).split())[:200]) from None
    finally:
        socket.setdefaulttimeout(before)
    return _keras_cache()


def _debian_download() -> Path:
    """Fills `package_cache` from the package, each file checked before it is put there."""
    cache = package_cache()
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix=".unpack-") as name:
        unpack_package(_PACKAGE, into=Path(name))
        folder = Path(name) / _PACKAGE_FOLDER
        for file in _FILES.values():
            _content(folder, file)
            write_atomically(cache / file.name, (folder / file.name).read_bytes())
    return cache


def _read_folder(folder: Path) -> dict[str, Any]:
    return {
        key: np.frombuffer(_content(folder, file), np.uint8, offset=file.header_bytes).reshape(
            file.shape
        )
        for key, file in _FILES.items()
    }


def _content(folder: Path, file: _File) -> bytes:
    """The file unpacked; DataError unless it is there and has its digest."""
    path = folder / file.name
    try:
        with gzip.open(path) as packed:
            # One byte more than there should be: enough to see that it is too long.
            raw = packed.read(file.nbytes + 1)
    except FileNotFoundError:
        raise DataError(f"{path} is not there") from None
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} can not be unpacked: {error}") from None
    if len(raw) != file.nbytes or sha256_hex(raw) != file.sha256:
        raise DataError(f"{path} is not Fashion-MNIST's (SHA-256 differs); delete it")
    return raw
