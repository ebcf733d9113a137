"""A user's own data: folders of .npz and CSV files, right and wrong."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tf_dpfl.data.federated import load_federated_data
from tf_dpfl.data.user_files import read_client_csv
from tf_dpfl.protocol.errors import DataError, DpflError

RNG = np.random.default_rng(0)


def write_client(path: Path, n: int, *, shape: tuple[int, ...] = (2, 2), top: int = 2) -> None:
    np.savez(path, x=RNG.random((n, *shape)), y=np.minimum(np.arange(n), top))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "clients"
    path.mkdir()
    for name, n in (("bob", 3), ("ann", 1), ("eve", 5)):
        write_client(path / f"{name}.npz", n)
    (path / "README.txt").write_text("not a client")
    return path


def test_folder_has_one_client_a_file_in_the_order_of_names(make_plan, folder, tmp_path):
    write_client(tmp_path / "test.npz", 4, top=3)
    data = load_federated_data(
        make_plan(
            data={
                "source": "folder",
                "path": str(folder),
                "partition": "natural",
                "test_path": str(tmp_path / "test.npz"),
            },
            population=3,
            examples_per_client=4,
        )
    )
    assert data.client_names == ("ann", "bob", "eve")
    assert data.counts.tolist() == [1, 3, 4]
    assert data.input_shape == (2, 2)
    assert data.classes == 4
    stored = np.load(folder / "eve.npz")
    np.testing.assert_array_equal(data.client(2)["x"], stored["x"][:4].astype(np.float32))
    np.testing.assert_array_equal(data.client(2)["y"], [0, 1, 2, 2])
    np.testing.assert_array_equal(data.test["y"], [0, 1, 2, 3])


def own(make_plan, folder: Path, population: int = 3, **data):
    return load_federated_data(
        make_plan(
            data={"source": "folder", "path": str(folder), "partition": "natural", **data},
            population=population,
            examples_per_client=4,
        )
    )


def test_description_of_own_data_tells_nothing_about_a_client(make_plan, folder):
    """The same record whatever the clients' examples are (sizes, values, names)."""
    before = json.dumps(own(make_plan, folder).description, sort_keys=True)
    (folder / "bob.npz").rename(folder / "zoe.npz")
    write_client(folder / "zoe.npz", 2)
    assert json.dumps(own(make_plan, folder).description, sort_keys=True) == before


def test_population_must_be_the_number_of_clients(make_plan, folder):
    with pytest.raises(DataError, match=r"has 3 clients, clients.population=2; set it to 3"):
        own(make_plan, folder, population=2)


def test_test_file_among_the_clients_is_refused(make_plan, folder, tmp_path):
    with pytest.raises(DataError, match="must never reach a client"):
        own(make_plan, folder, test_path=str(folder / "eve.npz"))
    (tmp_path / "link.npz").symlink_to(folder / "eve.npz")
    with pytest.raises(DataError, match="must never reach a client"):
        own(make_plan, folder, test_path=str(tmp_path / "link.npz"))


def test_missing_or_empty_folders_and_test_files_are_refused(make_plan, folder, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="has no .npz file"):
        own(make_plan, tmp_path / "empty")
    with pytest.raises(DataError, match="is not a folder"):
        own(make_plan, tmp_path / "absent")
    with pytest.raises(DataError, match="No such file"):
        own(make_plan, folder, test_path=str(tmp_path / "absent.npz"))


def test_faulty_client_file_is_named(make_plan, folder):
    write_client(folder / "carl.npz", 2, shape=(3, 2))
    with pytest.raises(DataError, match=r"carl\.npz: one example has x of shape \[3, 2\]"):
        own(make_plan, folder, population=4)
    with pytest.raises(DataError, match=r"ann\.npz: .*this task needs \[9\]"):
        own(make_plan, folder, feature_shape=[9])
    (folder / "carl.npz").write_bytes(b"")
    with pytest.raises(DataError, match=r"carl\.npz: can not be read"):
        own(make_plan, folder, population=4)


GOOD = "client,a,label,b\nann,0.5,1,2\nbob,1,0,-3e2\n\nann,7,2,8\n"


def read(tmp_path: Path, text: str | bytes, **changes):
    path = tmp_path / "data.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    settings = {
        "client_column": "client",
        "label_column": "label",
        "input_shape": (1, 2),
        "limit": 10,
        **changes,
    }
    return read_client_csv(path, **settings)


def test_csv_groups_by_client_and_keeps_the_columns_order(tmp_path):
    ann, bob = read(tmp_path, GOOD)
    assert (ann.name, bob.name) == ("ann", "bob")
    np.testing.assert_array_equal(ann.examples["x"], np.float32([[[0.5, 2]], [[7, 8]]]))
    np.testing.assert_array_equal(ann.examples["y"], np.int32([1, 2]))
    np.testing.assert_array_equal(bob.examples["x"], np.float32([[[1, -300]]]))
    assert (ann.examples["x"].dtype, ann.examples["y"].dtype) == (np.float32, np.int32)


def test_csv_with_limit_mark_quotes_and_windows_lines(tmp_path):
    text = "\ufeff" + GOOD.replace("\n", "\r\n").replace("ann", '"ann, the first"')
    ann, _ = read(tmp_path, text, limit=1)
    assert ann.name == "ann, the first"
    assert ann.examples["y"].tolist() == [1]


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("", 1, "no column"),
        ("client,a,b\n", 1, 'no column "label"'),
        ("user,a,label,b\n", 1, r'no column "client" \(data.client_column\)'),
        ("client,a,label,a\n", 1, "'a' is there more than once"),
        ("client,a,label\n", 1, r"1 feature columns do not fill data.feature_shape=\[1, 2\]"),
        ("client,a,label,b,c\n", 1, "3 feature columns"),
        (GOOD + "ann,1,2\n", 6, "3 cells, the header has 4"),
        (GOOD + "ann,1,2,3,4\n", 6, "5 cells"),
        (GOOD + " ,1,2,3\n", 6, "must name a client"),
        (GOOD + "ann,x,2,3\n", 6, "must be a number"),
        (GOOD + "ann,,2,3\n", 6, "must be a number"),
        (GOOD + "ann,nan,2,3\n", 6, "'nan' must be a finite"),
        (GOOD + "ann,1,2,-inf\n", 6, "'-inf' must be a finite"),
        (GOOD + "ann,1e39,2,3\n", 6, "'1e39' must be a finite"),
        (GOOD + "ann,1_0,2,3\n", 6, "'1_0' must be a finite"),
        (GOOD + "ann,1,1.5,3\n", 6, "label='1.5' must be a class id"),
        (GOOD + "ann,1,-1,3\n", 6, "label='-1'"),
        (GOOD + "ann,1,,3\n", 6, "label=''"),
        (GOOD + "ann,1,nan,3\n", 6, "label='nan'"),
        (GOOD + "ann,1,2147483648,3\n", 6, "label='2147483648'"),
        (GOOD + "ann,1," + "9" * 5000 + ",3\n", 6, "must be a class id"),
        (GOOD + 'ann,"1,2,3\n', 6, "not CSV"),
        (GOOD.encode() + b"\xff\xfe,1,2,3\n", None, "not CSV in UTF-8"),
        (GOOD + "ann," + "1" * 200_000 + ",2,3\n", 6, "not CSV"),
    ],
)
def test_every_csv_fault_names_file_and_line(tmp_path, text, line, message):
    with pytest.raises(DataError, match=message) as caught:
        read(tmp_path, text)
    assert str(caught.value).startswith(f"{tmp_path / 'data.csv'}:{'' if line is None else line}")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400 + len(str(tmp_path))


def test_csv_without_examples_or_file_is_refused(tmp_path):
    with pytest.raises(DataError, match="no examples below its header"):
        read(tmp_path, "client,a,label,b\n\n")
    with pytest.raises(DataError, match="both column"):
        read(tmp_path, "c,a,b\n", client_column="c", label_column="c")
    with pytest.raises(DataError, match="can not be read"):
        read_client_csv(tmp_path, client_column="c", label_column="l", input_shape=(1,), limit=1)


def test_csv_plan_gives_federated_data(make_plan, tmp_path):
    (tmp_path / "data.csv").write_text(GOOD.replace("client", "who").replace("label", "what"))
    plan = make_plan(
        data={
            "source": "csv",
            "path": str(tmp_path / "data.csv"),
            "partition": "natural",
            "client_column": "who",
            "label_column": "what",
            "feature_shape": [2, 1],
        },
        population=2,
        examples_per_client=1,
    )
    data = load_federated_data(plan)
    assert data.client_names == ("ann", "bob")
    assert data.counts.tolist() == [1, 1]
    assert data.input_shape == (2, 1)
    assert data.classes == 2
    assert data.test["x"].shape == (0, 2, 1)


def test_a_test_file_with_other_examples_is_refused(make_plan, folder, tmp_path):
    write_client(tmp_path / "test.npz", 3, shape=(5,))
    with pytest.raises(DpflError, match=r"test\.npz: one example has x of shape \[5\]"):
        own(make_plan, folder, test_path=str(tmp_path / "test.npz"))


def test_an_id_taken_for_a_label_is_refused_before_a_model_is_built(make_plan, tmp_path):
    np.savez(tmp_path / "a.npz", x=np.zeros((2, 3)), y=[0, 2**31 - 1])
    own = {"source": "folder", "partition": "natural", "path": str(tmp_path)}
    plan = make_plan(data=own, population=1, examples_per_client=2)
    with pytest.raises(DataError, match=r"largest label is 2147483647.*allowed are 65536"):
        load_federated_data(plan)
