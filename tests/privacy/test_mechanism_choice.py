"""Which mechanism a plan gets, with what noise, and what its card says of it."""

import math
from dataclasses import replace

import numpy as np
import pytest
from correlated_plans import correlated_plan, toeplitz
from privacy_plans import small_plan

from tf_dpfl.privacy.accounting import central_epsilon
from tf_dpfl.privacy.calibration import calibrate_plan
from tf_dpfl.privacy.card import privacy_card
from tf_dpfl.privacy.mechanism import mechanism_of_plan
from tf_dpfl.protocol.errors import PlanError


@pytest.mark.parametrize("mechanism", ["banded", "tree"])
@pytest.mark.parametrize("target", [0.5, 8.0])
def test_calibrated_plans_stay_just_below_the_target(mechanism, target):
    plan = correlated_plan(mechanism, noise_multiplier=None, target_epsilon=target)
    plan = calibrate_plan(plan)
    spent = [mechanism_of_plan(plan, rounds=plan.server.rounds)]
    assert 0.99 * target <= central_epsilon(spent, delta=plan.privacy.delta) <= target


def auto_plan(target, *, sampling="poisson", population=3000, cohort=300, rounds=100, **server):
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
        server={"rounds": rounds, **server},
    )


def error_by_matrix(plan):
    """The error in a calibrated plan's models, with nothing of the product's formulas."""
    rounds, noise = plan.server.rounds, plan.privacy.noise_multiplier
    prefix = np.tril(np.ones((rounds, rounds)))
    if plan.server.optimizer == "momentum":  # each velocity holds all earlier sums
        age = np.subtract.outer(np.arange(rounds), np.arange(rounds))
        prefix = prefix @ np.where(age >= 0, plan.server.momentum ** np.abs(age), 0.0)
    if plan.privacy.mechanism == "banded":
        prefix = prefix @ np.linalg.inv(toeplitz(plan.bands, rounds))
    return noise * math.sqrt((prefix**2).sum(axis=1).mean())


@pytest.mark.parametrize(
    ("target", "server", "mechanism"),
    [
        (8.0, {}, "banded"),
        (4.0, {}, "gaussian"),
        (2.0, {}, "gaussian"),
        (1.0, {}, "gaussian"),
        # Momentum is slower than noise that takes itself off again.
        (8.0, {"optimizer": "momentum", "momentum": 0.9}, "banded"),
        (4.0, {"optimizer": "momentum", "momentum": 0.9}, "banded"),
        (1.0, {"optimizer": "momentum", "momentum": 0.9}, "gaussian"),
    ],
)
def test_auto_becomes_the_mechanism_of_the_least_error_at_the_target(target, server, mechanism):
    plan = auto_plan(target, **server)
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
    assert chosen.privacy.mechanism == mechanism
    assert chosen.clients.sampling == ("min_separation" if mechanism == "banded" else "poisson")


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
    assert (
        central["sampling"].startswith("minimum separation") and "19 rounds" in central["sampling"]
    )
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
