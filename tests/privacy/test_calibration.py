"""Calibrated noise keeps to the target, wastes at most 1 % of it, and agrees with others."""

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from privacy_plans import small_plan

from tf_dpfl.privacy.accounting import central_epsilon
from tf_dpfl.privacy.calibration import calibrate_plan, calibrated_noise
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
