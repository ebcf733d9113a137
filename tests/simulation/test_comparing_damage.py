"""Comparisons whose folder was damaged, which are refused in words."""

from dataclasses import replace

import pytest
from plans import digits_plan, with_server

from tf_dpfl.data.federated import load_federated_data
from tf_dpfl.protocol.errors import StateError
from tf_dpfl.simulation.comparing import compare

PLAN = with_server(digits_plan(noise_multiplier=1.0), rounds=2)
PLAN = replace(PLAN, clients=replace(PLAN.clients, sampling="poisson"))


@pytest.fixture(scope="module")
def data():
    return load_federated_data(PLAN)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, data):
    """A comparison of which central training, which needs no TFF, has ended."""
    place = tmp_path_factory.mktemp("comparisons") / "one"
    result = again(place, data)
    assert set(result.not_compared.values()) == {"not named by --only"}
    return place


def again(folder, data, name="central"):
    return compare(PLAN, folder, data_is="public", only=[name], data=data)


@pytest.mark.parametrize(
    ("file", "good", "bad", "said"),
    [
        ("outcome.json", '"traffic"', "traffic", "not the outcome of a variant"),
        ("outcome.json", '"traffic"', '"trafic"', "not the outcome of a variant"),
        ("outcome.json", '"down": 0', '"down": "x"', "not the outcome of a variant"),
        ("outcome.json", '"card": null', '"card": {}', "card is not that of this variant"),
        ("outcome.json", '"version": 1', '"version": 2', "version 2 is not readable"),
        ("metrics.jsonl", '"accuracy"', '"acuracy"', "not the outcome of a variant.*accuracy"),
        ("metrics.jsonl", '"seconds"', '"second"', "not the outcome of a variant.*seconds"),
    ],
)
def test_a_damaged_outcome_is_named(folder, data, file, good, bad, said):
    damaged = folder / "variants" / "central" / file
    text = damaged.read_text()
    assert good in text
    damaged.write_text(text.replace(good, bad))
    try:
        with pytest.raises(StateError, match=f"outcome.json: .*{said}"):
            again(folder, data)
    finally:
        damaged.write_text(text)


def test_variants_of_one_comparison_never_begin_with_two_models(folder, data):
    kept = (folder / "initial_model.keras").rename(folder / "kept")
    try:
        with pytest.raises(StateError, match="initial_model.keras: is missing, and central began"):
            again(folder, data, "server-tree")
    finally:
        kept.rename(folder / "initial_model.keras")


def test_a_damaged_header_is_named(folder, data):
    header = folder / "comparison.json"
    text = header.read_text()
    header.write_text("{}")
    try:
        with pytest.raises(
            StateError, match="comparison.json: .*restore it, or choose a new folder"
        ):
            again(folder, data)
    finally:
        header.write_text(text)
