"""Correlated noise is accounted for the worst pattern that is enforced, and for nothing better."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from correlated_plans import BANDED, DELTA, TREE, correlated_plan
from dp_accounting import dp_event
from dp_accounting.pld import PLDAccountant
from hypothesis import given, settings
from hypothesis import strategies as st

from tf_dpfl.privacy.accounting import account, central_epsilon
from tf_dpfl.privacy.factorisation import banded_sensitivity
from tf_dpfl.privacy.ledger import Charge, Ledger, ledger_from_lines
from tf_dpfl.privacy.mechanism import (
    BandedRounds,
    GaussianRounds,
    TreeRounds,
    mechanism_from_json,
    mechanism_of_plan,
    merge_consecutive,
)
from tf_dpfl.privacy.tree import tree_sensitivity
from tf_dpfl.protocol.errors import BudgetError, TaskError
from tf_dpfl.protocol.gaussian import gaussian_epsilon

# --- Epsilon ------------------------------------------------------------------


def epsilon_of_gaussian(noise_multiplier, delta=DELTA):
    accountant = PLDAccountant()
    accountant.compose(dp_event.GaussianDpEvent(noise_multiplier))
    return accountant.get_epsilon(delta)


@pytest.mark.parametrize("rounds", [1, 9, 10, 11, 95, 100])
def test_epsilon_of_bands_is_that_of_one_gaussian_release(rounds):
    norm = math.sqrt(sum((math.comb(2 * i, i) / 4**i) ** 2 for i in range(10)))
    expected = epsilon_of_gaussian(3.0 / (math.sqrt(math.ceil(rounds / 10)) * norm))
    found = account([BANDED.with_rounds(rounds)], delta=DELTA)
    assert found.epsilon == pytest.approx(expected, rel=1e-3)
    assert found.relation == "zero-out"


@pytest.mark.parametrize("rounds", [1, 10, 100])
def test_epsilon_of_a_tree_is_that_of_one_gaussian_release(rounds):
    expected = epsilon_of_gaussian(3.0 / tree_sensitivity(separation=10, rounds=rounds))
    found = account([TREE.with_rounds(rounds)], delta=DELTA)
    assert found.epsilon == pytest.approx(expected, rel=1e-3)
    assert found.relation == "zero-out"


@pytest.mark.parametrize("mechanism", [BANDED, TREE])
def test_a_stopped_run_costs_its_rounds_so_far_not_its_plan(mechanism):
    log = [Charge(replace(mechanism, rounds=1, first_round=n), n).to_line() for n in range(1, 101)]
    for stopped in (1, 10, 11, 57, 100):
        ledger = ledger_from_lines(log[:stopped], delta=DELTA)
        expected = central_epsilon([mechanism.with_rounds(stopped)], delta=DELTA)
        assert ledger.epsilon == expected
        assert ledger.rounds == stopped
    assert ledger_from_lines(log[:11], delta=DELTA).epsilon < ledger.epsilon


@pytest.mark.parametrize("mechanism", [BANDED, TREE])
def test_rounds_priced_one_by_one_would_cost_more_or_less_but_never_the_same(mechanism):
    """Planted: the rounds as releases of their own, as independent noise is counted."""
    alone = GaussianRounds(mechanism.noise_multiplier, "poisson", 1.0, 100)
    assert central_epsilon([mechanism], delta=DELTA) != pytest.approx(
        central_epsilon([alone], delta=DELTA), rel=0.05
    )


@pytest.mark.parametrize("mechanism", [replace(BANDED, rounds=15), replace(TREE, rounds=15)])
def test_two_runs_are_two_releases_and_not_one_longer_run(mechanism):
    """A second run begins anew: nothing keeps its first rounds from the other's last."""
    twice = [mechanism, mechanism]
    assert merge_consecutive(twice) == tuple(twice)
    epsilon = central_epsilon(twice, delta=DELTA)
    one = {
        BandedRounds: banded_sensitivity(bands=10, separation=10, rounds=15),
        TreeRounds: tree_sensitivity(separation=10, rounds=15),
    }[type(mechanism)]
    expected = gaussian_epsilon(noise_multiplier=3.0 / one, delta=DELTA, reports=2)
    assert epsilon == pytest.approx(expected, rel=1e-9)
    longer = central_epsilon([mechanism.with_rounds(30)], delta=DELTA)
    if type(mechanism) is BandedRounds:
        assert epsilon > longer * 1.05  # four participations, not three


@pytest.mark.parametrize("mechanism", [BANDED, TREE])
def test_a_part_of_a_run_counts_as_all_of_it_up_to_there(mechanism):
    part = replace(mechanism, first_round=61, rounds=40)
    assert central_epsilon([part], delta=DELTA) == central_epsilon([mechanism], delta=DELTA)
    rest = [mechanism.with_rounds(60), part]
    assert merge_consecutive(rest) == (mechanism,)
    assert merge_consecutive([rest[0], replace(part, first_round=62)]) != (mechanism,)


def test_correlated_rounds_compose_with_others():
    norm = np.linalg.norm([math.comb(2 * i, i) / 4**i for i in range(10)])
    mu_squared = (math.sqrt(10) * norm / 3.0) ** 2 + 4 / 2.0**2
    spent = [BANDED, GaussianRounds(2.0, "fixed", 0.1, 4)]
    expected = gaussian_epsilon(noise_multiplier=1 / math.sqrt(mu_squared), delta=DELTA)
    assert central_epsilon(spent, delta=DELTA) == pytest.approx(expected, rel=1e-9)
    assert central_epsilon(spent[::-1], delta=DELTA) == pytest.approx(expected, rel=1e-9)
    sampled = [BANDED, GaussianRounds(2.0, "poisson", 0.1, 4)]
    assert central_epsilon([BANDED], delta=DELTA) < central_epsilon(sampled, delta=DELTA)
    assert central_epsilon(sampled, delta=DELTA) < expected


@pytest.mark.parametrize("mechanism", [BANDED, TREE])
def test_a_separation_that_nobody_keeps_is_not_counted(mechanism):
    enforced = central_epsilon([mechanism], delta=DELTA)
    everyone = central_epsilon([mechanism.unenforced()], delta=DELTA)
    assert everyone > 3 * enforced
    # Cohorts need not be secret.
    assert mechanism.unamplified() == mechanism


@settings(max_examples=60)
@given(
    noise=st.floats(0.5, 50),
    rounds=st.integers(1, 300),
    separation=st.integers(1, 40),
    tree=st.booleans(),
)
def test_epsilon_falls_with_noise_and_separation_and_grows_with_rounds(
    noise, rounds, separation, tree
):
    def epsilon(noise, rounds, separation):
        shared = (noise, "min_separation", 0.1, rounds, separation, 1)
        mechanism = TreeRounds(*shared) if tree else BandedRounds(*shared, min(separation, 7))
        return central_epsilon([mechanism], delta=DELTA)

    here = epsilon(noise, rounds, separation)
    assert 0 < here < math.inf
    assert epsilon(noise * 1.1, rounds, separation) < here
    assert epsilon(noise, rounds + separation, separation) > here
    if separation >= 7:  # with as many bands
        assert epsilon(noise, rounds, separation + 1) <= here * (1 + 1e-9)


@pytest.mark.parametrize("mechanism", [BANDED, TREE])
def test_limits_at_no_noise_no_rounds_and_very_much_noise(mechanism):
    assert central_epsilon([mechanism.with_rounds(0)], delta=DELTA) == 0
    assert central_epsilon([replace(mechanism, noise_multiplier=0.0)], delta=DELTA) == math.inf
    assert central_epsilon([replace(mechanism, noise_multiplier=1e6)], delta=DELTA) < 1e-3


# --- Mechanisms as data -------------------------------------------------------


@pytest.mark.parametrize("mechanism", [BANDED, TREE, replace(BANDED, first_round=7)])
def test_they_survive_a_trip_through_json(mechanism):
    raw = json.dumps(mechanism.to_json(), allow_nan=False)
    assert mechanism_from_json(json.loads(raw)) == mechanism


BAD = [
    (BANDED, "sampling", ["poisson", "fixed", None]),
    (BANDED, "separation", [0, 9, -1, 10.0, math.nan, True, None, 10**9 + 1]),
    (BANDED, "bands", [0, 11, 10.0, math.nan, True, None]),
    (TREE, "first_round", [0, -1, 1.0, math.nan, True, None]),
    (TREE, "rounds", [16_385, -1]),
    (GaussianRounds(1.0, "poisson", 0.1, 1), "sampling", ["min_separation"]),
]


@pytest.mark.parametrize(
    ("mechanism", "name", "value"), [(m, n, v) for m, n, vs in BAD for v in vs]
)
def test_values_out_of_range_are_refused(mechanism, name, value):
    with pytest.raises(ValueError, match=name):
        replace(mechanism, **{name: value})
    with pytest.raises(TaskError, match=name):
        mechanism_from_json({**mechanism.to_json(), name: value})


def test_a_plan_states_its_own_mechanism():
    plan = correlated_plan("banded", noise_multiplier=2.0)
    assert mechanism_of_plan(plan, rounds=30) == BandedRounds(
        2.0, "min_separation", 0.05, 30, 20, 1, 20
    )
    fewer = correlated_plan("banded", bands=4)
    assert mechanism_of_plan(fewer, rounds=1, first_round=9) == BandedRounds(
        1.0, "min_separation", 0.05, 1, 20, 9, 4
    )
    tree = correlated_plan("tree")
    assert mechanism_of_plan(tree, rounds=5) == TreeRounds(1.0, "min_separation", 0.05, 5, 20, 1)


def test_the_ledger_refuses_the_round_that_begins_a_participation_too_many():
    """Epsilon rises by steps, with the first round of each separation."""
    limit = central_epsilon([BANDED.with_rounds(20)], delta=DELTA) * (1 + 1e-9)
    ledger = Ledger(DELTA, limit)
    for number in range(1, 21):
        ledger = ledger.charge(replace(BANDED, rounds=1, first_round=number))
    with pytest.raises(BudgetError, match="more than max_epsilon"):
        ledger.charge(replace(BANDED, rounds=1, first_round=21))
