"""Correlated noise is accounted for the worst pattern that is enforced, and for nothing better."""

import itertools
import json
import math
from dataclasses import replace

import numpy as np
import pytest
from dp_accounting import NeighboringRelation, dp_event
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant
from hypothesis import given, settings
from hypothesis import strategies as st
from privacy_plans import small_plan

from tf_dpfl.privacy.accounting import RDP, account, central_epsilon
from tf_dpfl.privacy.calibration import calibrate_plan
from tf_dpfl.privacy.card import privacy_card
from tf_dpfl.privacy.factorisation import (
    banded_coefficients,
    banded_prefix_error,
    banded_sensitivity,
)
from tf_dpfl.privacy.ledger import Charge, Ledger, ledger_from_lines
from tf_dpfl.privacy.mechanism import (
    BandedRounds,
    GaussianRounds,
    TreeRounds,
    mechanism_from_json,
    mechanism_of_plan,
    merge_consecutive,
)
from tf_dpfl.privacy.tree import tree_prefix_error, tree_sensitivity
from tf_dpfl.protocol.errors import PlanError, TaskError
from tf_dpfl.protocol.gaussian import gaussian_epsilon

DELTA = 1e-5
BANDED = BandedRounds(3.0, "min_separation", 0.1, 100, 10, 1, 10)
TREE = TreeRounds(3.0, "min_separation", 0.1, 100, 10, 1)


def correlated_plan(mechanism, *, rounds=100, **privacy):
    """1000 users, 50 a round: 20 rounds of separation."""
    return small_plan(
        clients={"sampling": "min_separation"},
        privacy={"noise": "server", "mechanism": mechanism, **privacy},
        server={"rounds": rounds},
    )


def patterns(rounds, separation):
    """Every set of rounds, 0 to rounds - 1, at least `separation` apart; none of them empty."""
    for size in range(1, rounds + 1):
        for chosen in itertools.combinations(range(rounds), size):
            if all(b - a >= separation for a, b in itertools.pairwise(chosen)):
                yield list(chosen)


def toeplitz(bands, rounds):
    matrix = np.zeros((rounds, rounds))
    for offset in range(min(bands, rounds)):
        value = math.comb(2 * offset, offset) / 4**offset
        matrix += np.diag(np.full(rounds - offset, value), -offset)
    return matrix


def complete_nodes(rounds):
    """Which rounds are in which complete node, [nodes, rounds]."""
    rows = []
    for level in range(rounds.bit_length()):
        length = 1 << level
        for start in range(0, rounds - length + 1, length):
            rows.append([start <= t < start + length for t in range(rounds)])
    return np.array(rows, np.float64)


def worst(matrix, rounds, separation):
    """The largest norm of the sum of a pattern's columns: updates of norm 1, all alike.

    Entries are not negative, so no other updates of norm at most 1 give a larger one.
    """
    assert (matrix >= 0).all()
    return max(np.linalg.norm(matrix[:, p].sum(axis=1)) for p in patterns(rounds, separation))


# --- The factorisation --------------------------------------------------------


def test_without_bands_the_factor_is_the_square_root_of_the_prefix_sums():
    factor = np.zeros((30, 30))
    for offset, value in enumerate(banded_coefficients(30)):
        factor += np.diag(np.full(30 - offset, value), -offset)
    np.testing.assert_allclose(factor @ factor, np.tril(np.ones((30, 30))), atol=1e-12)


@pytest.mark.parametrize("rounds", [1, 2, 5, 8, 11, 12])
@pytest.mark.parametrize(("bands", "separation"), [(1, 1), (1, 3), (2, 3), (3, 3), (4, 4), (5, 7)])
def test_sensitivity_of_bands_is_that_of_the_worst_pattern(rounds, bands, separation):
    stated = banded_sensitivity(bands=bands, separation=separation, rounds=rounds)
    found = worst(toeplitz(bands, rounds), rounds, separation)
    assert found <= stated * (1 + 1e-12)
    if rounds % separation == 0 or rounds % separation >= bands:
        # The last participation's column is whole: the formula is exact.
        assert found == pytest.approx(stated, rel=1e-12)


@pytest.mark.parametrize("rounds", [1, 3, 4, 9])
@pytest.mark.parametrize("bands", [1, 2, 4, 6])
def test_without_a_separation_every_round_counts_and_adds_up(rounds, bands):
    stated = banded_sensitivity(bands=bands, separation=1, rounds=rounds)
    assert stated == pytest.approx(worst(toeplitz(bands, rounds), rounds, 1), rel=1e-12)


def test_bands_beyond_the_separation_have_no_formula():
    with pytest.raises(ValueError, match="separation"):
        banded_sensitivity(bands=4, separation=3, rounds=10)


@pytest.mark.parametrize(("bands", "rounds"), [(1, 1), (1, 20), (4, 3), (5, 20), (20, 20)])
def test_error_of_bands_is_the_one_of_the_matrix(bands, rounds):
    rows = np.tril(np.ones((rounds, rounds))) @ np.linalg.inv(toeplitz(bands, rounds))
    expected = math.sqrt((rows**2).sum(axis=1).mean())
    assert banded_prefix_error(bands=bands, rounds=rounds) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("rounds", "bands", "gain"), [(100, 10, 2.3), (1000, 100, 5.9)])
def test_bands_gain_what_the_field_notes_say_over_independent_noise(rounds, bands, gain):
    """Both without any sampling assumed: independent noise is one band, in every round."""
    banded = banded_sensitivity(bands=bands, separation=bands, rounds=rounds)
    banded *= banded_prefix_error(bands=bands, rounds=rounds)
    independent = banded_sensitivity(bands=1, separation=bands, rounds=rounds)
    independent *= banded_prefix_error(bands=1, rounds=rounds)
    assert independent / banded == pytest.approx(gain, rel=0.05)


# --- The tree -----------------------------------------------------------------


@pytest.mark.parametrize("rounds", [1, 2, 3, 7, 8, 11, 13])
@pytest.mark.parametrize("separation", [1, 2, 3, 4, 5, 8, 20])
def test_sensitivity_of_a_tree_is_that_of_the_worst_pattern(rounds, separation):
    stated = tree_sensitivity(separation=separation, rounds=rounds)
    assert stated == pytest.approx(worst(complete_nodes(rounds), rounds, separation), rel=1e-12)


@pytest.mark.parametrize(("rounds", "separation"), [(31, 3), (40, 7), (64, 10), (100, 20)])
def test_sensitivity_of_a_tree_is_tensorflow_privacys(rounds, separation):
    from tensorflow_privacy.privacy.analysis import tree_aggregation_accountant as theirs

    most = -(-rounds // separation)
    # They count the rounds between two participations.
    zcdp = theirs.compute_zcdp_single_tree(1.0, rounds, most, separation - 1)
    ours = tree_sensitivity(separation=separation, rounds=rounds)
    assert ours == pytest.approx(math.sqrt(2 * zcdp), rel=1e-12)


def test_a_user_of_one_round_meets_one_node_of_each_level():
    for rounds in (1, 2, 100, 128, 16_384):
        expected = math.sqrt(rounds.bit_length())
        assert tree_sensitivity(separation=rounds, rounds=rounds) == pytest.approx(expected)
    accountant = RdpAccountant(neighboring_relation=NeighboringRelation.REPLACE_SPECIAL)
    accountant.compose(dp_event.SingleEpochTreeAggregationDpEvent(3.0, 100))
    spent = [replace(TREE, separation=100)]
    epsilon = central_epsilon(spent, delta=DELTA, accountant=RDP)
    assert epsilon == pytest.approx(accountant.get_epsilon(DELTA), rel=0.01)


@pytest.mark.parametrize("rounds", [1, 2, 7, 8, 100])
def test_error_of_a_tree_is_the_one_of_its_weights(rounds):
    """A tree of level l: variance 1 of a leaf, then half of it and one more node."""
    variance = [1.0]
    for _ in range(10):
        # Two estimates of one sum: from the children, 2 v, and from the node itself, 1.
        variance.append(2 * variance[-1] / (2 * variance[-1] + 1))
    per_prefix = [
        sum(variance[level] for level in range(10) if t >> level & 1) for t in range(1, rounds + 1)
    ]
    assert tree_prefix_error(rounds=rounds) == pytest.approx(math.sqrt(np.mean(per_prefix)))


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
    log = [
        Charge(replace(mechanism, rounds=1, first_round=n), n).to_line() for n in range(1, 101)
    ]
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


@pytest.mark.parametrize(("mechanism", "name", "value"), [(m, n, v) for m, n, vs in BAD for v in vs])
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


# --- Calibration and choice ---------------------------------------------------


@pytest.mark.parametrize("mechanism", ["banded", "tree"])
@pytest.mark.parametrize("target", [0.5, 8.0])
def test_calibrated_plans_stay_just_below_the_target(mechanism, target):
    plan = correlated_plan(mechanism, noise_multiplier=None, target_epsilon=target)
    plan = calibrate_plan(plan)
    spent = [mechanism_of_plan(plan, rounds=plan.server.rounds)]
    assert 0.99 * target <= central_epsilon(spent, delta=plan.privacy.delta) <= target


def auto_plan(target, *, sampling="poisson", population=3000, cohort=300, rounds=100):
    return small_plan(
        clients={
            "population": population,
            "clients_per_round": cohort,
            "sampling": sampling,
        },
        privacy={
            "noise": "server",
            "mechanism": "auto",
            "noise_multiplier": None,
            "target_epsilon": target,
            "delta": 1e-4,
        },
        server={"rounds": rounds},
    )


def error_by_matrix(plan):
    """The prefix sums' error of a calibrated plan, with nothing of the product's formulas."""
    rounds, noise = plan.server.rounds, plan.privacy.noise_multiplier
    prefix = np.tril(np.ones((rounds, rounds)))
    if plan.privacy.mechanism == "banded":
        prefix = prefix @ np.linalg.inv(toeplitz(plan.bands, rounds))
    return noise * math.sqrt((prefix**2).sum(axis=1).mean())


@pytest.mark.parametrize("target", [8.0, 4.0, 2.0, 1.0])
def test_auto_becomes_the_mechanism_of_the_least_error_at_the_target(target):
    plan = auto_plan(target)
    chosen = calibrate_plan(plan)
    spent = [mechanism_of_plan(chosen, rounds=100)]
    assert 0.99 * target <= central_epsilon(spent, delta=1e-4) <= target
    others = [
        calibrate_plan(
            replace(
                plan,
                clients=replace(plan.clients, sampling=sampling),
                privacy=replace(plan.privacy, mechanism=mechanism, bands=bands),
            )
        )
        for mechanism, sampling, bands in [
            ("gaussian", "poisson", None),
            ("banded", "min_separation", None),
            ("banded", "min_separation", 4),
            ("banded", "min_separation", 1),
        ]
    ]
    least = min(error_by_matrix(other) for other in others)
    # 1 % of epsilon is left to each calibration.
    assert error_by_matrix(chosen) <= least * 1.01
    assert chosen.privacy.mechanism == ("banded" if target == 8.0 else "gaussian")
    assert chosen.clients.sampling == ("min_separation" if target == 8.0 else "poisson")


def test_auto_says_why_and_the_card_repeats_it():
    chosen = calibrate_plan(auto_plan(8.0))
    reason = chosen.privacy.chosen_because
    for word in ("banded (10 bands)", "gaussian (poisson sampling)", "tree", "epsilon 8"):
        assert word in reason
    card = privacy_card(chosen, rounds_done=0, sampling_enforced_by="this test")
    assert card.to_json()["mechanism_chosen_because"] == reason
    assert "banded (10 bands)" in " ".join(card.to_text().split())
    assert calibrate_plan(auto_plan(8.0)) == chosen  # a run that goes on chooses the same
    assert calibrate_plan(chosen) is chosen


def test_auto_weighs_only_what_the_plans_sampling_allows():
    chosen = calibrate_plan(auto_plan(2.0, sampling="min_separation"))
    assert chosen.privacy.mechanism == "banded"
    assert "gaussian" not in chosen.privacy.chosen_because
    unsampled = calibrate_plan(auto_plan(2.0, sampling="fixed"))
    assert "gaussian (fixed sampling)" in unsampled.privacy.chosen_because
    assert unsampled.privacy.mechanism == "banded"  # nothing is amplified for fixed cohorts


def test_an_uncalibrated_auto_plan_states_no_mechanism():
    with pytest.raises(PlanError, match="calibrate_plan"):
        mechanism_of_plan(auto_plan(8.0), rounds=1)


# --- The card and the ledger --------------------------------------------------


@pytest.mark.parametrize("mechanism", ["banded", "tree"])
def test_the_card_says_what_is_assumed_and_who_enforces_it(mechanism):
    plan = correlated_plan(mechanism, noise_multiplier=3.0)
    card = privacy_card(plan, rounds_done=30, sampling_enforced_by="this test: a cycle")
    tree = card.to_json()
    assert tree["mechanism"] == mechanism
    central = tree["central"]
    expected = central_epsilon([mechanism_of_plan(plan, rounds=30)], delta=plan.privacy.delta)
    planned = central_epsilon([mechanism_of_plan(plan, rounds=100)], delta=plan.privacy.delta)
    assert central["epsilon"] == expected
    assert central["epsilon_when_all_rounds_are_done"] == planned
    assert central["adjacency"].startswith("zero-out")
    assert central["sampling"].startswith("minimum separation") and "19 rounds" in central["sampling"]
    # No secret cohort is assumed: whoever knows them gains nothing.
    assert central["if_cohorts_are_known"]["epsilon"] == expected
    assert central["if_cohorts_are_known"]["sampling"] == central["sampling"]
    assert tree["local"]["epsilon_one_report"] is None
    text = card.to_text()
    words = "banded matrix factorisation" if mechanism == "banded" else "tree aggregation"
    assert words in " ".join(text.split())


@pytest.mark.parametrize("mechanism", ["banded", "tree"])
def test_a_card_of_cohorts_nobody_separates_counts_every_round(mechanism):
    plan = correlated_plan(mechanism, noise_multiplier=3.0)
    card = privacy_card(plan, rounds_done=30)  # not enforced
    everyone = mechanism_of_plan(plan, rounds=30).unenforced()
    assert card.central_epsilon == central_epsilon([everyone], delta=plan.privacy.delta)
    assert card.to_json()["central"]["sampling"].startswith("none is assumed")


def test_the_ledger_refuses_the_round_that_begins_a_participation_too_many():
    """Epsilon rises by steps, with the first round of each separation."""
    limit = central_epsilon([BANDED.with_rounds(20)], delta=DELTA) * (1 + 1e-9)
    ledger = Ledger(DELTA, limit)
    for number in range(1, 21):
        ledger = ledger.charge(replace(BANDED, rounds=1, first_round=number))
    with pytest.raises(Exception, match="more than max_epsilon"):
        ledger.charge(replace(BANDED, rounds=1, first_round=21))
