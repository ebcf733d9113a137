"""The record store: what goes in comes out, damage and other versions are refused."""

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tf_dpfl.data.columns import FederatedData
from tf_dpfl.data.federated import load_federated_data
from tf_dpfl.data.sharing import shared_on_this_machine
from tf_dpfl.data.store import NumberedNames, StoreWriter, open_store, write_store
from tf_dpfl.protocol.errors import DataError
from tf_dpfl.protocol.interface import ExampleInterface, ExampleTensor
from tf_dpfl.protocol.plan import plan_from_dict


def ragged():
    random = np.random.default_rng(0)
    return FederatedData(
        inputs={"x": random.integers(0, 256, (9, 2, 2), np.uint8)},
        target=random.integers(0, 3, 9).astype(np.int32),
        offsets=np.array([0, 4, 4, 9]),
        feature_scale=255.0,
        classes=3,
        test={"x": np.ones((2, 2, 2), np.float32), "y": np.array([0, 2], np.int32)},
        client_names=("a", "b", "c"),
        description={"source": "here"},
    )


def same(one, other):
    assert one.population == other.population
    for client in range(one.population):
        for name, array in one.client(client).items():
            np.testing.assert_array_equal(other.client(client)[name], array)
            assert other.client(client)[name].dtype == array.dtype
    for name, array in one.test.items():
        np.testing.assert_array_equal(other.test[name], array)


def test_a_store_gives_back_what_was_written(tmp_path):
    data = ragged()
    write_store(data, tmp_path / "store")
    opened = open_store(tmp_path / "store")
    same(data, opened)
    assert (opened.classes, opened.feature_scale) == (3, 255.0)
    assert opened.description == {"source": "here"}
    assert list(opened.client_names) == ["0", "1", "2"]
    assert isinstance(opened.inputs["x"], np.memmap)  # mapped, not read
    for name, path in {**opened.files.columns, "offsets": opened.files.offsets}.items():
        array = {**opened.inputs, "y": opened.target, "offsets": opened.offsets}[name]
        assert Path(path).read_bytes() == np.asarray(array).tobytes()


def test_a_plan_of_any_source_trains_from_its_store(tmp_path):
    tree = {
        "version": 1,
        "task": {"model": "mlp"},
        "data": {"source": "digits", "partition": "dirichlet"},
        "clients": {
            "population": 12,
            "clients_per_round": 4,
            "examples_per_client": 7,
            "sampling": "fixed",
        },
        "local_training": {"epochs": 1, "batch_size": 4, "learning_rate": 0.1},
        "privacy": {"clip_norm": 1.0, "delta": 1e-3, "smallest_cohort": 2, "noise_multiplier": 1.0},
        "server": {"rounds": 1},
    }
    plan = plan_from_dict(tree)
    data = load_federated_data(plan)
    write_store(data, tmp_path / "store")
    stored = {"source": "store", "path": str(tmp_path / "store"), "partition": "natural"}
    again = load_federated_data(plan_from_dict({**tree, "data": stored}))
    same(data, again)
    tree["clients"]["population"] = 13
    with pytest.raises(DataError, match="12 clients.*population=13"):
        load_federated_data(plan_from_dict({**tree, "data": stored}))


def test_users_can_be_added_some_at_a_time(tmp_path):
    data = ragged()
    columns = {"x": (np.uint8, (2, 2)), "y": (np.int32, ())}
    about = {"columns": columns, "feature_scale": 255.0, "classes": 3}
    with StoreWriter(tmp_path / "store", **about, test=data.test) as writer:
        for user in range(3):
            rows = slice(data.offsets[user], data.offsets[user + 1])
            writer.add({"x": data.inputs["x"][rows], "y": data.target[rows]}, [data.counts[user]])
    same(data, open_store(tmp_path / "store"))


@pytest.mark.parametrize("name", ["x.bin", "y.bin", "offsets.bin", "test_x.bin", "store.json"])
@pytest.mark.parametrize("damage", ["flipped", "cut", "gone"])
def test_a_damaged_store_is_refused_by_the_name_of_its_file(tmp_path, name, damage):
    write_store(ragged(), tmp_path / "store")
    path = tmp_path / "store" / name
    content = path.read_bytes()
    if damage == "gone":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(content[:-1])
    else:
        middle = len(content) // 2
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    with pytest.raises(DataError, match=name if damage != "flipped" else "store"):
        open_store(tmp_path / "store")


def test_another_version_and_another_folder_are_refused(tmp_path):
    write_store(ragged(), tmp_path / "store")
    path = tmp_path / "store" / "store.json"
    header = json.loads(path.read_text())
    path.write_text(json.dumps({**header, "version": 2}))
    with pytest.raises(DataError, match="version 2"):
        open_store(tmp_path / "store")
    with pytest.raises(DataError, match=r"dpfl data store"):
        open_store(tmp_path)
    with pytest.raises(DataError, match="exists already"):
        write_store(ragged(), tmp_path / "store")


@pytest.mark.parametrize(
    "wrong",
    [
        {"y": np.zeros(2, np.int32)},
        {"x": np.zeros((2, 2, 2), np.float32), "y": np.zeros(2, np.int32)},
        {"x": np.zeros((3, 2, 2), np.uint8), "y": np.zeros(2, np.int32)},
    ],
)
def test_what_was_not_announced_is_refused_and_nothing_stays(tmp_path, wrong):
    columns = {"x": (np.uint8, (2, 2)), "y": (np.int32, ())}
    with (
        pytest.raises(DataError, match="the store takes"),
        StoreWriter(tmp_path / "s", columns=columns, feature_scale=1.0, classes=2) as writer,
    ):
        writer.add(wrong, [2])
    assert not list(tmp_path.iterdir())


def test_values_that_are_not_finite_are_refused(tmp_path):
    data = replace(ragged(), inputs={"x": np.full((9, 2, 2), np.nan, np.float32)})
    with pytest.raises(DataError, match="finite"):
        write_store(data, tmp_path / "store")


def test_a_store_is_held_against_a_model_without_reading_it(tmp_path):
    write_store(ragged(), tmp_path / "store")
    data = open_store(tmp_path / "store")

    def interface(shape=(2, 2), dtype="float32", classes=3):
        target = ExampleTensor("y", "int32", ())
        return ExampleInterface((ExampleTensor("x", dtype, shape),), target, (classes,))

    assert data.fitted(interface()).inputs["x"] is data.inputs["x"]
    with pytest.raises(DataError, match="shape"):
        data.fitted(interface(shape=(4,)))
    with pytest.raises(DataError, match="3 classes, the model 2"):
        data.fitted(interface(classes=2))


def test_shared_memory_holds_the_same_and_is_gone_afterwards():
    data = ragged()
    with shared_on_this_machine(data) as shared:
        same(data, shared)
        paths = [*shared.files.columns.values(), shared.files.offsets]
        assert Path(shared.files.columns["x"]).read_bytes() == data.inputs["x"].tobytes()
        with shared_on_this_machine(shared) as again:
            assert again is shared
    assert not any(os.path.exists(path) for path in paths)


def test_a_million_names_take_no_memory():
    names = NumberedNames(1_000_000)
    assert (len(names), names[7], names[-1], names[:2]) == (
        1_000_000,
        "000007",
        "999999",
        ["000000", "000001"],
    )
    with pytest.raises(IndexError):
        names[1_000_000]
