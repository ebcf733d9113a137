"""Calibrated noise keeps to the target, wastes at most 1 % of it, and agrees with others."""

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from privacy_plans import small_plan

from tf_dpfl.privacy.accounting import central_epsilon
from tf_dpfl.privacy.calibration import calibrate_plan, calibrated_noise, solve_plan
from tf_dpfl.privacy.mechanism import GaussianRounds, mechanism_of_plan
from tf_dpfl.protocol.errors import PlanError
from tf_dpfl.protocol.gaussian import gaussian_epsilon


def target_plan(target, **sections):
    sections.setdefault("privacy", {})
    sections["privacy"] |= {"noise_multiplier": None, "target_epsilon": target}
    return small_plan(**sections)


@pytest.mark.parametrize("target", [0.05, 0.5, 2.0, 8.0, 60.0])
@pytest.mark.parametrize("sampling", ["poisson", "fixed"])
def test_the_whole_plan_stays_just_below_the_target(target, sampling):
    plan = calibrate_plan(target_plan(target, clients={"sampling": sampling}))
    assert plan.privacy.target_epsilon is None
    spent = [mechanism_of_plan(plan, rounds=plan.server.rounds)]
    assert 0.99 * target <= central_epsilon(spent, delta=plan.privacy.delta) <= target


def test_a_little_less_noise_would_miss_the_target():
    plan = calibrate_plan(target_plan(2.0))
    noise = plan.privacy.noise_multiplier
    spent = replace(mechanism_of_plan(plan, rounds=20), noise_multiplier=0.97 * noise)
    assert central_epsilon([spent], delta=plan.privacy.delta) > 2.0


def test_only_the_noise_of_the_plan_changes():
    plan = target_plan(2.0)
    calibrated = calibrate_plan(plan)
    assert replace(calibrated, privacy=plan.privacy) == plan
    assert replace(calibrated.privacy, noise_multiplier=None, target_epsilon=2.0) == plan.privacy


@pytest.mark.parametrize("noise", [0.0, 0.7])
def test_a_plan_with_noise_is_returned_as_it_is(noise):
    plan = small_plan(privacy={"noise_multiplier": noise})
    assert calibrate_plan(plan) is plan


def test_calibrating_twice_changes_nothing():
    once = calibrate_plan(target_plan(3.0))
    assert calibrate_plan(once) is once


@settings(max_examples=25)
@given(target=st.floats(0.01, 50), rounds=st.integers(1, 500), delta=st.floats(1e-9, 1e-3))
def test_unsampled_rounds_need_what_the_closed_form_says(target, rounds, delta):
    release = GaussianRounds(1.0, "poisson", 1.0, rounds)
    noise = calibrated_noise(release, target_epsilon=target, delta=delta)
    reached = gaussian_epsilon(noise_multiplier=noise, delta=delta, reports=rounds)
    assert 0.99 * target <= reached <= target


def test_poisson_agrees_with_dp_accountings_own_calibration():
    from dp_accounting import calibrate_dp_mechanism, dp_event, pld

    theirs = calibrate_dp_mechanism(
        lambda: pld.PLDAccountant(value_discretization_interval=1e-3),
        lambda z: dp_event.SelfComposedDpEvent(
            dp_event.PoissonSampledDpEvent(0.05, dp_event.GaussianDpEvent(z)), 20
        ),
        2.0,
        1e-5,
    )
    ours = calibrate_plan(target_plan(2.0)).privacy.noise_multiplier
    assert ours == pytest.approx(theirs, rel=0.01)


@pytest.mark.parametrize("target", [1e-9, 1e9])
def test_a_target_no_usable_noise_gives_is_a_plan_error(target):
    with pytest.raises(PlanError, match="target_epsilon") as caught:
        calibrate_plan(target_plan(target, privacy={"delta": 1e-12}))
    (fault,) = caught.value.faults
    assert "\n" not in fault and "privacy.noise_multiplier" in fault


@pytest.mark.parametrize("target", [0.0, -1.0, math.nan])
def test_a_target_that_is_none_is_a_plan_error(target):
    with pytest.raises(PlanError, match="must be > 0"):
        calibrated_noise(GaussianRounds(1.0, "fixed", 0.1, 1), target_epsilon=target, delta=1e-5)


@pytest.mark.parametrize("what", ["rounds", "cohort"])
@pytest.mark.parametrize("sampling", ["poisson", "fixed"])
@pytest.mark.parametrize("target", [1.5, 4.0])
def test_one_round_or_client_more_than_was_solved_for_would_miss_the_target(what, sampling, target):
    noise = 1.0 if sampling == "poisson" else 8.0
    start = small_plan(
        clients={"sampling": sampling},
        privacy={"noise_multiplier": noise, "smallest_cohort": 1},
    )
    plan = solve_plan(start, target_epsilon=target, what=what)

    def epsilon(plan):
        spent = mechanism_of_plan(plan, rounds=plan.server.rounds)
        return central_epsilon([spent], delta=plan.privacy.delta)

    assert epsilon(plan) <= target
    if what == "rounds":
        more = replace(plan, server=replace(plan.server, rounds=plan.server.rounds + 1))
        assert replace(plan, server=start.server) == start
    else:
        count = plan.clients.clients_per_round
        if count == plan.clients.population:
            return
        more = replace(plan, clients=replace(plan.clients, clients_per_round=count + 1))
        assert replace(plan, clients=start.clients) == start
    assert epsilon(more) > target


def test_a_whole_population_is_the_largest_cohort():
    plan = small_plan(privacy={"noise_multiplier": 500.0, "smallest_cohort": 1})
    assert solve_plan(plan, target_epsilon=4.0, what="cohort").clients.clients_per_round == 1000


def test_what_can_not_be_solved_for_says_why():
    plan = small_plan(privacy={"noise_multiplier": 0.3})
    with pytest.raises(PlanError, match=r"server.rounds=1 costs .*; raise it, or solve for the"):
        solve_plan(plan, target_epsilon=0.1, what="rounds")
    tight = small_plan(privacy={"noise_multiplier": 0.8})
    with pytest.raises(PlanError, match=r"smallest_cohort=25 must be at most"):
        solve_plan(tight, target_epsilon=1.0, what="cohort")
    banded = small_plan(
        clients={"sampling": "min_separation"},
        privacy={"noise_multiplier": 4.0, "noise": "server", "mechanism": "banded"},
    )
    with pytest.raises(PlanError, match="another separation"):
        solve_plan(banded, target_epsilon=1.0, what="cohort")
    assert solve_plan(banded, target_epsilon=4.0, what="rounds").server.rounds > 1
