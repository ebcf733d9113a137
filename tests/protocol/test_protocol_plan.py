"""A plan is read whole or refused with every fault: file, key, value, what is allowed."""

import json
import math
from dataclasses import FrozenInstanceError, fields

import pytest
from hypothesis import given
from hypothesis import strategies as st
from plan_trees import plan_tree

from tf_dpfl.protocol.errors import PlanError
from tf_dpfl.protocol.plan import (
    SECTIONS,
    Clients,
    Plan,
    Privacy,
    Server,
    Simulation,
    plan_from_dict,
    plan_to_dict,
)


def faults_of(tree):
    with pytest.raises(PlanError) as caught:
        plan_from_dict(tree, source="p.toml")
    assert all("\n" not in fault and fault.startswith("p.toml: ") for fault in caught.value.faults)
    return caught.value.faults


def only_fault(tree):
    (fault,) = faults_of(tree)
    return fault


def test_a_plan_survives_a_trip_through_plain_values():
    plan = plan_from_dict(plan_tree())
    assert plan_from_dict(json.loads(json.dumps(plan_to_dict(plan)))) == plan


def test_a_plan_is_frozen():
    plan = plan_from_dict(plan_tree())
    with pytest.raises(FrozenInstanceError):
        plan.version = 2
    with pytest.raises(FrozenInstanceError):
        plan.privacy.clip_norm = 1e9


def test_privacy_and_speed_never_share_a_dataclass():
    speed = {f.name for f in fields(Simulation)}
    for cls in (Clients, Privacy, Server):
        assert not speed & {f.name for f in fields(cls)}


def test_simulation_and_tuning_may_be_left_out_and_nothing_else():
    assert plan_from_dict(plan_tree()).simulation == Simulation()
    for name in set(SECTIONS) - {"simulation", "tuning"}:
        tree = plan_tree()
        del tree[name]
        assert f"section [{name}] is missing" in only_fault(tree)


def test_all_faults_are_told_at_once():
    tree = plan_tree(
        task={"model": 3},
        clients={"population": -1, "sampling": "sometimes"},
        privacy={"clip_norm": math.nan, "colour": "red"},
        server={"rounds": None, "learning_rate": True},
    )
    tree["magic"] = {}
    del tree["local_training"]
    faults = faults_of(tree)
    for part in (
        "unknown section [magic]",
        "task.model=3 must be a non-empty string",
        "clients.population=-1 must be an integer >= 1 and <= 1000000000",
        'clients.sampling=\'sometimes\' must be "poisson" or "fixed"',
        "unknown key privacy.colour",
        "privacy.clip_norm=nan must be a finite number",
        "server.rounds is missing",
        "server.learning_rate=True must be a finite number >= 1e-30 and < 1e+12",
        "section [local_training] is missing",
    ):
        assert sum(part in fault for fault in faults) == 1, part
    assert len(faults) == 9


def test_a_faulty_value_hides_no_contradiction_between_others():
    tree = plan_tree(
        data={"source": "csv", "partition": "iid", "partition_seed": -1},
        clients={"population": 40, "examples_per_client": 0},
        local_training={"epochs": "two", "optimizer_state": "keep"},
        privacy={
            "clip_norm": math.nan,
            "colour": "red",
            "smallest_cohort": 60,
            "target_epsilon": 2.0,
            "delta": 0.5,
            "secure_aggregation": True,
        },
    )
    del tree["server"]
    faults = faults_of(tree)
    for part in (
        "data.partition_seed=-1",
        "data.path is missing",
        'data.partition="iid"',
        "data.feature_shape is missing",
        "clients.examples_per_client=0",
        "clients.clients_per_round=50 must be at most",
        "local_training.epochs='two'",
        'local_training.optimizer_state="keep"',
        "privacy.clip_norm=nan",
        "unknown key privacy.colour",
        "privacy.smallest_cohort=60 must be at most",
        "set exactly one of the two",
        "privacy.delta=0.5 must be below",
        "privacy.secure_aggregation=true",
        "section [server] is missing",
    ):
        assert sum(part in fault for fault in faults) == 1, part
    assert len(faults) == 15


def test_a_value_that_can_not_be_read_contradicts_nothing():
    tree = plan_tree(privacy={"smallest_cohort": 10**12, "delta": math.inf})
    assert len(faults_of(tree)) == 2
    tree = plan_tree(clients={"population": math.nan})
    assert "clients.population=nan" in only_fault(tree)


@pytest.mark.parametrize("version", [None, 0, 2, "1", 1.0, True, math.nan, [1]])
def test_another_version_is_refused_before_anything_else(version):
    tree = plan_tree(task={"model": 3})
    tree["version"] = version
    assert "version" in only_fault(tree)


@pytest.mark.parametrize("section", ["task", "privacy", "simulation"])
@pytest.mark.parametrize("value", [None, 3, "x", [1], True])
def test_a_section_must_be_a_section(section, value):
    tree = plan_tree()
    tree[section] = value
    assert f"must be a section [{section}]" in only_fault(tree)


def test_an_unknown_key_with_line_ends_stays_one_line():
    assert r"\n" in only_fault(plan_tree(privacy={"evil\nkey": 1}))


@pytest.mark.parametrize(
    ("section", "key"),
    [
        ("clients", "population"),
        ("clients", "clients_per_round"),
        ("clients", "examples_per_client"),
        ("local_training", "epochs"),
        ("local_training", "batch_size"),
        ("privacy", "smallest_cohort"),
        ("server", "rounds"),
        ("simulation", "users_per_shard"),
    ],
)
@pytest.mark.parametrize("value", [0, -1, 1.5, 2.0, True, "3", math.nan, math.inf, 10**400])
def test_counts_are_positive_integers(section, key, value):
    assert f"{section}.{key}=" in only_fault(plan_tree(**{section: {key: value}}))


@pytest.mark.parametrize(
    ("section", "key"),
    [
        ("local_training", "learning_rate"),
        ("local_training", "momentum"),
        ("privacy", "clip_norm"),
        ("privacy", "delta"),
        ("privacy", "noise_multiplier"),
        ("server", "learning_rate"),
        ("server", "beta_2"),
        ("server", "epsilon"),
        ("data", "dirichlet_alpha"),
    ],
)
@pytest.mark.parametrize("value", [-1, math.nan, math.inf, -math.inf, True, "0.1", [], 10**400])
def test_reals_are_finite_and_in_range(section, key, value):
    assert f"{section}.{key}=" in only_fault(plan_tree(**{section: {key: value}}))


@pytest.mark.parametrize("value", [0, 1e-10, 1e12, 1e300])
def test_the_clip_norm_keeps_float32_arithmetic_normal(value):
    assert "privacy.clip_norm=" in only_fault(plan_tree(privacy={"clip_norm": value}))


@pytest.mark.parametrize("section", ["local_training", "server"])
@pytest.mark.parametrize("value", [0, 1e-300, 1e12, 1e300])
def test_learning_rates_are_normal_numbers_in_float32(section, value):
    fault = only_fault(plan_tree(**{section: {"learning_rate": value}}))
    assert f"{section}.learning_rate=" in fault


@pytest.mark.parametrize(
    ("section", "key", "most"),
    [
        ("clients", "examples_per_client", 10**5),
        ("local_training", "epochs", 10**4),
        ("local_training", "batch_size", 10**5),
        ("server", "rounds", 10**9),
    ],
)
def test_counts_stay_where_no_arithmetic_overflows(section, key, most):
    assert getattr(getattr(plan_from_dict(plan_tree(**{section: {key: most}})), section), key)
    fault = only_fault(plan_tree(**{section: {key: most + 1}}))
    assert f"{section}.{key}={most + 1} must be an integer >= 1 and <= {most}" in fault


def test_a_clients_steps_fit_int32():
    # Local training counts epochs * ceil(examples / batch_size) steps in int32.
    plan_from_dict(
        plan_tree(
            clients={"examples_per_client": 10**5},
            local_training={"epochs": 10**4, "batch_size": 1},
        )
    )
    assert 10**5 * 10**4 < 2**31


@pytest.mark.parametrize("value", [0, 1, 1.5])
def test_delta_is_between_zero_and_one(value):
    faults = faults_of(plan_tree(privacy={"delta": value}))
    assert any("privacy.delta=" in fault for fault in faults)


def test_noise_free_plans_are_legal_and_say_so_in_their_number():
    assert plan_from_dict(plan_tree(privacy={"noise_multiplier": 0})).privacy.noise_multiplier == 0


SEPARATED = {"clients": {"sampling": "min_separation"}}  # 20 rounds of separation
BANDED = {"mechanism": "banded", "noise": "server"}
SOLVED = {"noise_multiplier": None, "target_epsilon": 2.0}


@pytest.mark.parametrize(
    ("sections", "part"),
    [
        ({"clients": {"clients_per_round": 1001}}, "must be at most clients.population=1000"),
        ({"privacy": {"smallest_cohort": 51}}, "no round could close"),
        ({"privacy": {"delta": 0.001}}, "below 1/clients.population"),
        ({"privacy": {"target_epsilon": 2.0}}, "exactly one of the two"),
        ({"privacy": {"noise_multiplier": None}}, "exactly one of the two"),
        ({"privacy": {"secure_aggregation": True}}, "not available in this release"),
        ({"privacy": {"unit": "example", "noise": "server"}}, "belongs to the steps"),
        ({**SEPARATED, "privacy": {"mechanism": "banded"}}, "drawn by one party that remembers"),
        ({**SEPARATED, "privacy": {"mechanism": "tree"}}, "drawn by one party that remembers"),
        ({"privacy": {"mechanism": "auto", **SOLVED}}, "drawn by one party that remembers"),
        ({"privacy": {"mechanism": "auto", "unit": "example", **SOLVED}}, "share none"),
        ({"privacy": {"mechanism": "auto", "noise": "server"}}, "needs privacy.target_epsilon"),
        ({"privacy": {"mechanism": "banded", "noise": "server"}}, "far enough apart"),
        ({"privacy": {"mechanism": "tree", "noise": "server"}}, "far enough apart"),
        ({"clients": {"sampling": "min_separation"}}, "bands = 1"),
        ({**SEPARATED, "privacy": {**BANDED, "bands": 21}}, "must be at most 20"),
        ({**SEPARATED, "privacy": {**BANDED, "mechanism": "tree", "bands": 2}}, 'for mechanism="b'),
        ({"privacy": {"bands": 2}}, 'is for mechanism="banded"'),
        (
            {**SEPARATED, "privacy": {**BANDED, "mechanism": "tree"}, "server": {"rounds": 16_385}},
            "walks through every round",
        ),
        ({"privacy": {"unit": "example", "delta": 5e-4}}, "below 1/(clients.population * clients"),
        ({"data": {"source": "csv", "partition": "natural", "path": "a"}}, "feature_shape"),
        ({"data": {"source": "folder", "partition": "natural"}}, "data.path is missing"),
        ({"data": {"source": "folder", "path": "a"}}, 'must be "natural"'),
        ({"data": {"partition": "natural"}}, 'needs source "folder", "csv" or "store"'),
        ({"data": {"test_path": "a"}}, 'need source "folder", "csv" or "store"'),
    ],
)
def test_contradictions_are_refused(sections, part):
    assert part in only_fault(plan_tree(**sections))


def test_plans_of_before_there_were_mechanisms_mean_independent_noise():
    plan = plan_from_dict(plan_tree())
    assert plan.privacy.mechanism == "gaussian" and not plan.privacy.is_correlated
    assert plan.privacy.bands is None and plan.privacy.chosen_because == ""
    old = plan_to_dict(plan)
    for key in ("mechanism", "chosen_because"):
        del old["privacy"][key]
    assert plan_from_dict(old) == plan


@pytest.mark.parametrize(
    ("population", "bands", "rounds", "expected"),
    [(1000, None, 100, 20), (1049, None, 100, 20), (1000, None, 7, 7), (1000, 3, 100, 3)],
)
def test_bands_are_the_rounds_of_separation_unless_the_plan_says(
    population, bands, rounds, expected
):
    clients = {"population": population, "sampling": "min_separation"}
    privacy = {**BANDED, "bands": bands, "delta": 1e-6}
    plan = plan_from_dict(plan_tree(clients=clients, privacy=privacy, server={"rounds": rounds}))
    assert plan.clients.separation == 20 and plan.bands == expected
    assert plan_from_dict(plan_to_dict(plan)) == plan


def test_contradictions_are_found_beside_other_faults():
    faults = faults_of(plan_tree(clients={"clients_per_round": 2000}, server={"rounds": "many"}))
    assert len(faults) == 2


def test_a_population_without_a_float_is_refused_and_not_an_overflow():
    assert "clients.population=" in only_fault(plan_tree(clients={"population": 10**400}))


def test_the_noise_is_not_guessed_while_only_a_target_is_known():
    tree = plan_tree(privacy={"noise_multiplier": None, "target_epsilon": 2})
    plan = plan_from_dict(tree)
    with pytest.raises(PlanError, match="calibrate_plan"):
        plan.privacy.calibrated_noise_multiplier  # noqa: B018
    fixed = plan.with_noise_multiplier(1.5)
    assert fixed.privacy.calibrated_noise_multiplier == 1.5
    assert fixed.privacy.target_epsilon is None
    assert plan_from_dict(plan_to_dict(fixed)) == fixed


def test_everyone_in_every_round_is_sampling_probability_one():
    plan = plan_from_dict(plan_tree(clients={"clients_per_round": 1000}))
    assert plan.clients.sampling_probability == 1.0
    assert plan_from_dict(plan_tree()).clients.sampling_probability == 0.05


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@given(
    section=st.sampled_from(sorted(SECTIONS)),
    data=st.data(),
    value=JSON,
)
def test_no_value_raises_anything_but_a_plan_error(section, data, value):
    tree = plan_tree()
    key = data.draw(st.sampled_from([f.name for f in fields(SECTIONS[section])]))
    tree.setdefault(section, {})[key] = value
    try:
        plan = plan_from_dict(tree)
    except PlanError:
        return
    assert isinstance(plan, Plan)
    assert plan_from_dict(plan_to_dict(plan)) == plan
