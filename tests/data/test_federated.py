"""Federated data of public sources: whole, scaled, and apart from the test split."""

from __future__ import annotations

import json

import numpy as np
import pytest
from sklearn.datasets import load_digits

from tf_dpfl.data.federated import FederatedData, load_federated_data
from tf_dpfl.data.sources import digits_split, load_source
from tf_dpfl.data.user_files import write_client_files, write_test_file
from tf_dpfl.protocol.errors import DataError
from tf_dpfl.protocol.examples import read_arrays, read_examples
from tf_dpfl.protocol.interface import ExampleInterface, ExampleTensor

DIGITS = {"source": "digits", "partition": "dirichlet", "partition_seed": 4}


@pytest.fixture
def digits(make_plan) -> FederatedData:
    return load_federated_data(make_plan(data=DIGITS, population=40, examples_per_client=30))


def rows_of(x: np.ndarray) -> set[bytes]:
    return {row.tobytes() for row in np.ascontiguousarray(x, np.float32)}


def small() -> FederatedData:
    """Three clients with 2, 0 and 3 bytes."""
    return FederatedData(
        inputs={"x": np.array([[51], [102], [153], [204], [255]], np.uint8)},
        target=np.array([0, 1, 2, 0, 1], np.int32),
        offsets=np.array([0, 2, 2, 5]),
        feature_scale=255.0,
        classes=3,
        test={"x": np.zeros((0, 1), np.float32), "y": np.zeros(0, np.int32)},
        client_names=("a", "b", "c"),
    )


@pytest.mark.parametrize("partition", ["iid", "dirichlet", "shards"])
def test_no_digits_test_image_is_any_clients(make_plan, partition):
    """All 1,797 digits are different images, so equal bytes mean the same image."""
    original = load_digits()
    assert len(rows_of(original.images)) == 1797
    plan = make_plan(
        data={"source": "digits", "partition": partition}, population=70, examples_per_client=20
    )
    data = load_federated_data(plan)
    clients = rows_of(np.concatenate([data.client(i)["x"] for i in range(data.population)]))
    test = rows_of(data.test["x"])
    assert len(clients) == 70 * 20
    assert not clients & test
    assert clients | test <= rows_of(original.images[..., None] / 16)


def test_digits_split_is_fixed_stratified_and_a_fifth():
    labels = load_digits().target
    train, test = digits_split(labels)
    assert sorted([*train, *test]) == list(range(1797))
    per_class = np.bincount(labels)
    np.testing.assert_array_equal(np.bincount(labels[test]), (per_class * 0.2).astype(int))
    # Written down here: a change would move test images to clients of older runs.
    assert (len(train), len(test), test[:5].tolist()) == (1442, 355, [4, 5, 13, 14, 23])


def test_digits_are_scaled_to_one_and_labels_are_right(digits):
    original = load_digits()
    label_of = {
        image.astype(np.float32).tobytes(): label
        for image, label in zip(original.images / 16, original.target)
    }
    for index in range(digits.population):
        x, y = digits.client(index).values()
        assert (x.dtype, y.dtype, x.shape) == (np.float32, np.int32, (30, 8, 8, 1))
        assert x.min() >= 0.0
        assert x.max() <= 1.0
        assert [label_of[image.tobytes()] for image in x] == y.tolist()
    assert digits.input_shape == (8, 8, 1)
    assert digits.classes == 10
    assert digits.test["x"].max() == 1.0


def test_one_plan_gives_the_same_data_and_another_seed_gives_other(make_plan, digits):
    sizes = {"population": 40, "examples_per_client": 30}
    again = load_federated_data(make_plan(data=DIGITS, **sizes))
    other = load_federated_data(make_plan(data={**DIGITS, "partition_seed": 5}, **sizes))
    np.testing.assert_array_equal(again.inputs["x"], digits.inputs["x"])
    assert again.description == digits.description
    assert other.description["partition_sha256"] != digits.description["partition_sha256"]
    np.testing.assert_array_equal(other.test["x"], digits.test["x"])


def test_description_is_json_and_records_what_decides_the_data(digits):
    record = json.loads(json.dumps(digits.description))
    assert record["source"] == "digits"
    assert record["partition"] == "dirichlet"
    assert record["partition_seed"] == 4
    assert record["dirichlet_alpha"] == 0.3
    assert len(record["partition_sha256"]) == 64
    assert record["test_split"]["seed"]
    assert (record["population"], record["examples"]) == (40, 1200)
    assert (record["smallest_client"], record["largest_client"]) == (30, 30)


def test_too_many_clients_for_the_source_are_refused(make_plan):
    with pytest.raises(DataError, match=r"needs 1800 examples, the source has 1442"):
        load_federated_data(make_plan(data=DIGITS, population=60, examples_per_client=30))


def test_unknown_source_is_refused():
    with pytest.raises(DataError, match="known: digits, fashion_mnist"):
        load_source("mnist")


def test_client_gives_its_rows_in_order_as_copies():
    data = small()
    x, y = data.client(0).values()
    np.testing.assert_array_equal(x, np.float32([[0.2], [0.4]]))
    y[:] = 9
    np.testing.assert_array_equal(data.client(0)["y"], [0, 1])
    assert data.client(1)["x"].shape == (0, 1)
    for index in (-1, 3):
        with pytest.raises(IndexError):
            data.client(index)


def test_written_files_are_read_back_value_for_value(tmp_path, digits):
    paths = write_client_files(digits, tmp_path / "clients", clients=[3, 0])
    assert [path.name for path in paths] == ["client_000003.npz", "client_000000.npz"]
    interface = ExampleInterface(
        (ExampleTensor("x", "float32", (8, 8, 1)),), ExampleTensor("y", "int32", ()), (10,)
    )
    for path, index in zip(paths, [3, 0]):
        x, y = read_examples(path, interface).values()
        np.testing.assert_array_equal(x, digits.client(index)["x"])
        np.testing.assert_array_equal(y, digits.client(index)["y"])
        assert np.load(path)["x"].dtype == np.float32
    write_test_file(digits, tmp_path / "server" / "test.npz")
    x, y = read_arrays(tmp_path / "server" / "test.npz").values()
    np.testing.assert_array_equal(x, digits.test["x"])
    np.testing.assert_array_equal(y, digits.test["y"])
    assert not rows_of(x) & rows_of(np.concatenate([read_arrays(path)["x"] for path in paths]))


def test_nothing_is_written_for_a_missing_test_split(tmp_path):
    with pytest.raises(DataError, match="no test split"):
        write_test_file(small(), tmp_path / "test.npz")
    assert not list(tmp_path.iterdir())
