"""Mechanisms are plain data: what is written is read back, anything else is refused."""

import json
import math
from dataclasses import FrozenInstanceError, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from privacy_plans import small_plan

from tf_dpfl.privacy.mechanism import (
    ExampleGaussianEpochs,
    GaussianRounds,
    mechanism_from_json,
    mechanism_of_plan,
    merge_consecutive,
)
from tf_dpfl.protocol.errors import PlanError, TaskError

ONE = GaussianRounds(1.25, "poisson", 0.1, 7)
EPOCHS = ExampleGaussianEpochs(1.25, "poisson", 0.1, 7, 2)


@given(
    noise=st.floats(0, 1e300),
    sampling=st.sampled_from(["poisson", "fixed"]),
    probability=st.floats(0, 1, exclude_min=True),
    rounds=st.integers(0, 10**9),
)
def test_a_mechanism_survives_a_trip_through_json(noise, sampling, probability, rounds):
    mechanism = GaussianRounds(noise, sampling, probability, rounds)
    raw = json.dumps(mechanism.to_json(), allow_nan=False)
    assert mechanism_from_json(json.loads(raw)) == mechanism


@given(noise=st.floats(0, 1e300), rounds=st.integers(0, 10**9), epochs=st.integers(1, 10**4))
def test_epochs_of_examples_survive_a_trip_through_json(noise, rounds, epochs):
    mechanism = ExampleGaussianEpochs(noise, "fixed", 0.25, rounds, epochs)
    raw = json.dumps(mechanism.to_json(), allow_nan=False)
    assert mechanism_from_json(json.loads(raw)) == mechanism
    assert json.loads(raw)["kind"] == "example_gaussian_epochs"


@pytest.mark.parametrize("value", [0, -1, 1.0, math.nan, True, "3", None, 10**4 + 1])
def test_epochs_out_of_range_are_refused(value):
    with pytest.raises(ValueError, match="epochs"):
        replace(EPOCHS, epochs=value)
    with pytest.raises(TaskError, match="epochs"):
        mechanism_from_json({**EPOCHS.to_json(), "epochs": value})


def test_one_kind_is_not_read_as_another():
    without = {key: value for key, value in EPOCHS.to_json().items() if key != "epochs"}
    with pytest.raises(TaskError, match="keys"):
        mechanism_from_json(without)
    with pytest.raises(TaskError, match="keys"):
        mechanism_from_json({**EPOCHS.to_json(), "kind": "gaussian_rounds"})
    like = GaussianRounds(EPOCHS.noise_multiplier, "poisson", 0.1, 7)
    assert like != EPOCHS and merge_consecutive([like, EPOCHS]) == (like, EPOCHS)


def test_a_mechanism_is_frozen():
    with pytest.raises(FrozenInstanceError):
        ONE.rounds = 0


BAD = [
    ("noise_multiplier", [-1, -1e-9, math.nan, math.inf, -math.inf, "1", None, True, 10**400]),
    ("sampling", ["", "Poisson", "shuffled", None, 1, ["poisson"]]),
    ("sampling_probability", [0, 0.0, -0.1, 1.0000001, math.nan, math.inf, "1", None, True]),
    ("rounds", [-1, 1.0, math.nan, True, "3", None, 10**9 + 1, 10**400]),
]


@pytest.mark.parametrize(("name", "value"), [(n, v) for n, vs in BAD for v in vs], ids=str)
def test_values_out_of_range_are_refused(name, value):
    with pytest.raises(ValueError, match=name):
        replace(ONE, **{name: value})
    with pytest.raises(TaskError, match=name):
        mechanism_from_json({**ONE.to_json(), name: value})


@pytest.mark.parametrize("kind", ["laplace_rounds", "", None, 1, ["gaussian_rounds"]])
@pytest.mark.parametrize("version", [1])
def test_an_unknown_kind_is_refused(kind, version):
    with pytest.raises(TaskError, match="kind"):
        mechanism_from_json({**ONE.to_json(), "kind": kind, "version": version})


@pytest.mark.parametrize("version", [0, 2, None, "1", True, 1.0, math.nan])
def test_an_unknown_version_is_refused(version):
    with pytest.raises(TaskError, match="version"):
        mechanism_from_json({**ONE.to_json(), "version": version})


def test_missing_and_unknown_keys_are_refused():
    for key in ONE.to_json():
        tree = ONE.to_json()
        del tree[key]
        with pytest.raises(TaskError):
            mechanism_from_json(tree)
    with pytest.raises(TaskError, match="keys"):
        mechanism_from_json({**ONE.to_json(), "discount": 0.5})


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    )
)
def test_nothing_raises_anything_but_a_task_error(tree):
    with pytest.raises(TaskError):
        mechanism_from_json(tree)


def test_a_plan_states_its_own_mechanism():
    plan = small_plan(clients={"sampling": "fixed"}, privacy={"noise_multiplier": 0.8})
    assert mechanism_of_plan(plan, rounds=3) == GaussianRounds(0.8, "fixed", 0.05, 3)


@pytest.mark.parametrize(
    ("sampling", "unit", "probability"),
    [
        ("poisson", "user", 0.05),
        ("poisson", "example", 0.05),
        ("fixed", "user", 1.0),
        ("fixed", "example", 0.05),
    ],
)
def test_kept_states_end_amplification_where_they_tell_who_else_was_drawn(
    sampling, unit, probability
):
    """The states of others are functions of their own coins only where coins are independent.

    An example's central number mixes over how often its own client was drawn, and holds
    whatever is known of others.
    """
    keep = {"optimizer": "momentum", "optimizer_state": "keep"}
    sections = {"clients": {"sampling": sampling}, "privacy": {"unit": unit}}
    kept = mechanism_of_plan(small_plan(**sections, local_training=keep), rounds=3)
    assert (kept.sampling, kept.sampling_probability) == (sampling, probability)
    reset = mechanism_of_plan(small_plan(**sections), rounds=3)
    assert reset.sampling_probability == 0.05


def test_an_uncalibrated_plan_states_none():
    plan = small_plan(privacy={"noise_multiplier": None, "target_epsilon": 1.0})
    with pytest.raises(PlanError, match="calibrate_plan"):
        mechanism_of_plan(plan, rounds=1)


def test_merging_keeps_the_order_the_rounds_and_nothing_empty():
    other = replace(ONE, noise_multiplier=2.0)
    spending = [ONE, ONE.with_rounds(0), ONE, other, ONE]
    assert merge_consecutive(spending) == (ONE.with_rounds(14), other, ONE)
    assert merge_consecutive([]) == ()
