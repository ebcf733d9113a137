"""Fashion-MNIST: found in the promised order, checked by digest, or refused with all reasons."""

from __future__ import annotations

import gzip
import os
import socket
import sys
from pathlib import Path

import numpy as np
import pytest

from tf_dpfl.data import fashion_mnist
from tf_dpfl.data.debian import unpack_package
from tf_dpfl.data.fashion_mnist import FILE_NAMES, find_fashion_mnist, package_cache, ways
from tf_dpfl.data.federated import load_federated_data
from tf_dpfl.protocol.errors import DataError


@pytest.fixture(scope="session")
def files() -> Path:
    """A folder with the four real files: this user's, or fetched into its cache once."""
    try:
        find_fashion_mnist()
    except DataError as error:
        pytest.skip(f"no Fashion-MNIST and no way to get it: {error}")
    for _, way in ways():
        try:
            folder = way()
        except DataError:
            continue
        if all((folder / name).is_file() for name in FILE_NAMES):
            return folder
    raise AssertionError("found, but in no folder")


@pytest.fixture
def nothing_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user with an empty home, no apt and no network."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("PATH", str(tmp_path / "no_programs"))
    for name in ("XDG_CACHE_HOME", "DPFL_DATA", "APT_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(fashion_mnist, "_KERAS_URL", "http://127.0.0.1:1/train-labels")
    monkeypatch.setattr(fashion_mnist, "_PACKAGE_FOLDER", str(tmp_path / "not_installed")[1:])
    return home


def link(files: Path, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in FILE_NAMES:
        (folder / name).symlink_to(files / name)
    return folder


def test_failing_all_ways_one_error_names_each_and_why(nothing_here, monkeypatch):
    monkeypatch.setenv("DPFL_DATA", str(nothing_here))
    with pytest.raises(DataError) as caught:
        find_fashion_mnist()
    text = str(caught.value)
    assert "\n" not in text
    expected = [
        f"the folder in DPFL_DATA: {nothing_here / FILE_NAMES[0]} is not there",
        f"the Keras cache: {nothing_here}/.keras/datasets/fashion-mnist/",
        "Keras' download: no answer from its server",
        f"the cache of Debian's package: {nothing_here}/.cache/tf_dpfl/fashion-mnist/",
        "Debian's installed package: ",
        "Debian's package dataset-fashion-mnist: this machine has no apt-get",
    ]
    places = [text.find(words) for words in expected]
    assert -1 not in places
    assert places == sorted(places)
    assert all(name in text for name in FILE_NAMES)


def test_looking_for_a_network_leaves_sockets_as_they_were(nothing_here):
    with pytest.raises(DataError):
        find_fashion_mnist()
    assert socket.getdefaulttimeout() is None


def test_ways_are_tried_in_order(files, nothing_here, monkeypatch, tmp_path):
    link(files, package_cache())
    assert find_fashion_mnist().found == "the cache of Debian's package"
    link(files, nothing_here / ".keras" / "datasets" / "fashion-mnist")
    assert find_fashion_mnist().found == "the Keras cache"
    monkeypatch.setenv("DPFL_DATA", str(link(files, tmp_path / "mine")))
    assert find_fashion_mnist().found == "the folder in DPFL_DATA"


def test_named_folder_may_hold_a_fashion_mnist_folder(files, nothing_here, monkeypatch, tmp_path):
    link(files, tmp_path / "data" / "fashion-mnist")
    monkeypatch.setenv("DPFL_DATA", str(tmp_path / "data"))
    assert find_fashion_mnist().found == "the folder in DPFL_DATA"


def test_images_and_labels_are_the_data_sets_own(files, nothing_here, monkeypatch):
    monkeypatch.setenv("DPFL_DATA", str(files))
    found = find_fashion_mnist()
    for x, y, n in ((found.train_x, found.train_y, 60000), (found.test_x, found.test_y, 10000)):
        assert (x.shape, x.dtype) == ((n, 28, 28, 1), np.uint8)
        np.testing.assert_array_equal(np.bincount(y), [n // 10] * 10)
    # Known of this data set: the training mean of its pixels is 0.2860.
    assert abs(found.train_x.mean() / 255 - 0.2860) < 1e-4
    assert found.train_y[:5].tolist() == [9, 0, 0, 3, 0]


def damaged_label(path: Path, original: Path) -> None:
    raw = bytearray(gzip.decompress(original.read_bytes()))
    raw[-1] ^= 1
    path.write_bytes(gzip.compress(bytes(raw)))


DAMAGES = {
    "another_label": damaged_label,
    "one_byte_more": lambda path, original: path.write_bytes(
        gzip.compress(gzip.decompress(original.read_bytes()) + b"\0")
    ),
    "truncated": lambda path, original: path.write_bytes(original.read_bytes()[:-100]),
    "not_gzip": lambda path, original: path.write_bytes(b"hello"),
    "empty": lambda path, original: path.write_bytes(b""),
    "folder": lambda path, original: path.mkdir(),
    "missing": lambda path, original: None,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_files_with_other_content_are_passed_over(
    files, nothing_here, monkeypatch, tmp_path, damage
):
    folder = link(files, tmp_path / "mine")
    bad = folder / "t10k-labels-idx1-ubyte.gz"
    bad.unlink()
    DAMAGES[damage](bad, files / bad.name)
    monkeypatch.setenv("DPFL_DATA", str(folder))
    with pytest.raises(DataError, match=str(bad)):
        find_fashion_mnist()
    link(files, package_cache())
    assert find_fashion_mnist().found == "the cache of Debian's package"


def test_repacked_files_are_the_same_data(files, nothing_here, monkeypatch, tmp_path):
    folder = link(files, tmp_path / "mine")
    path = folder / "train-labels-idx1-ubyte.gz"
    raw = gzip.decompress(path.read_bytes())
    path.unlink()
    path.write_bytes(gzip.compress(raw, 1))
    monkeypatch.setenv("DPFL_DATA", str(folder))
    assert find_fashion_mnist().found == "the folder in DPFL_DATA"


def test_relative_cache_folders_are_ignored_as_xdg_says(nothing_here, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert package_cache() == nothing_here / ".cache" / "tf_dpfl" / "fashion-mnist"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert package_cache() == tmp_path / "tf_dpfl" / "fashion-mnist"


def test_federated_fashion_mnist_has_disjoint_clients_and_its_own_test_split(
    files, nothing_here, monkeypatch, make_plan
):
    monkeypatch.setenv("DPFL_DATA", str(files))
    plan = make_plan(
        data={"source": "fashion_mnist", "partition": "dirichlet"},
        population=3000,
        examples_per_client=20,
    )
    data = load_federated_data(plan)
    assert data.inputs["x"].dtype == np.uint8
    assert data.counts.tolist() == [20] * 3000
    source = find_fashion_mnist()

    def rows(images: np.ndarray) -> list[bytes]:
        return sorted(image.tobytes() for image in images)

    # 3000 x 20 = 60000: clients have every training image once and nothing else.
    assert rows(data.inputs["x"]) == rows(source.train_x)
    np.testing.assert_array_equal(
        data.test["x"], source.test_x.astype(np.float32) / np.float32(255)
    )
    x = data.client(17)["x"]
    np.testing.assert_array_equal(x * np.float32(255), data.inputs["x"][340:360])
    classes = np.array([len(set(data.client(i)["y"].tolist())) for i in range(3000)])
    assert 2 < classes.mean() < 7


def script(folder: Path, name: str, body: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!{sys.executable}\n{body}\n")
    (folder / name).chmod(0o755)


def test_apts_own_complaint_is_passed_on_and_nothing_is_left(tmp_path, monkeypatch):
    programs = tmp_path / "programs"
    complain = (
        "import sys; print('W: noise\\nE: no mirror\\nW: more', file=sys.stderr); sys.exit(100)"
    )
    script(programs, "apt-get", complain)
    script(programs, "dpkg-deb", "")
    monkeypatch.setenv("PATH", str(programs))
    into = tmp_path / "into"
    with pytest.raises(DataError, match=r"download .*: E: no mirror \(update: .*E: no mirror\)"):
        unpack_package("dataset-fashion-mnist", into=into)
    assert list(into.iterdir()) == []


def test_a_package_that_is_no_package_leaves_no_data(nothing_here, tmp_path, monkeypatch):
    """apt may bring anything: only files of the right content reach the cache."""
    programs = tmp_path / "programs"
    script(programs, "apt-get", "open('fake.deb', 'w').close()")
    lie = (
        "import gzip, pathlib, sys\n"
        f"folder = pathlib.Path(sys.argv[3]) / {fashion_mnist._PACKAGE_FOLDER!r}\n"
        "folder.mkdir(parents=True)\n"
        f"for name in {FILE_NAMES!r}: (folder / name).write_bytes(gzip.compress(b'x'))"
    )
    script(programs, "dpkg-deb", lie)
    monkeypatch.setenv("PATH", str(programs))
    with pytest.raises(DataError, match="is not Fashion-MNIST's"):
        find_fashion_mnist()
    assert list(package_cache().iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("lists", ["the machine's", "missing"])
def test_a_fresh_fetch_through_apt_fills_the_users_cache(
    nothing_here, monkeypatch, tmp_path, lists
):
    """Needs Debian's mirror: the machine's package lists, and then none at all."""
    monkeypatch.setenv("PATH", os.defpath)
    if lists == "missing":
        (tmp_path / "lists" / "partial").mkdir(parents=True)
        (tmp_path / "apt.conf").write_text(f'Dir::State::lists "{tmp_path / "lists"}";\n')
        monkeypatch.setenv("APT_CONFIG", str(tmp_path / "apt.conf"))
    monkeypatch.setattr(fashion_mnist, "_PACKAGE_FOLDER", "usr/share/datasets/fashion-mnist")
    assert find_fashion_mnist().found == "Debian's package dataset-fashion-mnist"
    assert sorted(os.listdir(package_cache())) == sorted(FILE_NAMES)
    monkeypatch.setenv("PATH", str(tmp_path / "no_programs"))
    assert find_fashion_mnist().found == "the cache of Debian's package"
