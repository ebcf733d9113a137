"""The closed form of the Gaussian mechanism against mpmath and dp_accounting."""

import math

import mpmath
import pytest
from dp_accounting.gaussian_mechanism import get_epsilon_gaussian
from hypothesis import given
from hypothesis import strategies as st
from plan_trees import plan_tree

from tf_dpfl.protocol.errors import PlanError
from tf_dpfl.protocol.gaussian import gaussian_epsilon
from tf_dpfl.protocol.local_privacy import local_epsilon
from tf_dpfl.protocol.plan import plan_from_dict


def exact_delta(*, noise_multiplier, epsilon, reports):
    """delta of the Gaussian mechanism in 60 digits (1805.06530, theorem 8)."""
    with mpmath.workdps(60):
        mu = mpmath.sqrt(reports) / mpmath.mpf(noise_multiplier)
        epsilon = mpmath.mpf(epsilon)
        return mpmath.ncdf(mu / 2 - epsilon / mu) - mpmath.exp(epsilon) * mpmath.ncdf(
            -mu / 2 - epsilon / mu
        )


@pytest.mark.parametrize("noise_multiplier", [1e-3, 0.02, 0.3, 1.0, 3.0, 30.0, 1e5])
@pytest.mark.parametrize("delta", [0.5, 1e-2, 1e-5, 1e-9, 1e-15, 1e-30])
@pytest.mark.parametrize("reports", [1, 100])
def test_epsilon_is_where_the_exact_delta_is_met(noise_multiplier, delta, reports):
    epsilon = gaussian_epsilon(noise_multiplier=noise_multiplier, delta=delta, reports=reports)
    settings = {"noise_multiplier": noise_multiplier, "reports": reports}
    above = exact_delta(**settings, epsilon=epsilon * (1 + 1e-9))
    assert above <= delta
    if epsilon:
        assert exact_delta(**settings, epsilon=epsilon * (1 - 1e-9)) >= delta


@pytest.mark.parametrize("noise_multiplier", [0.3, 1.0, 5.0])
@pytest.mark.parametrize("delta", [1e-3, 1e-6])
def test_epsilon_agrees_with_dp_accounting(noise_multiplier, delta):
    ours = gaussian_epsilon(noise_multiplier=noise_multiplier, delta=delta)
    theirs = get_epsilon_gaussian(noise_multiplier, delta)
    assert math.isclose(ours, theirs, rel_tol=1e-4)


def test_the_textbook_formula_is_not_used_where_it_is_wrong():
    """Pitfall 4: sigma = sqrt(2 ln(1.25/delta))/epsilon fails for epsilon > 1."""
    delta, epsilon = 1e-5, 20.0
    sigma = math.sqrt(2 * math.log(1.25 / delta)) / epsilon
    assert exact_delta(noise_multiplier=sigma, epsilon=epsilon, reports=1) > delta
    assert gaussian_epsilon(noise_multiplier=sigma, delta=delta) > epsilon


def test_reports_compose_as_one_with_less_noise():
    many = gaussian_epsilon(noise_multiplier=2.0, delta=1e-5, reports=16)
    one = gaussian_epsilon(noise_multiplier=0.5, delta=1e-5)
    assert math.isclose(many, one, rel_tol=1e-9)


def test_the_limits():
    assert gaussian_epsilon(noise_multiplier=0, delta=1e-5) == math.inf
    assert gaussian_epsilon(noise_multiplier=0, delta=1e-5, reports=0) == 0
    assert gaussian_epsilon(noise_multiplier=1, delta=1e-5, reports=0) == 0
    assert gaussian_epsilon(noise_multiplier=1e9, delta=1e-5) == 0


@given(
    noise_multiplier=st.floats(0, 1.7e308),
    delta=st.floats(0, 1, exclude_min=True, exclude_max=True),
    reports=st.integers(0, 10**12),
)
def test_no_noise_however_extreme_gives_nan_or_hangs(noise_multiplier, delta, reports):
    epsilon = gaussian_epsilon(noise_multiplier=noise_multiplier, delta=delta, reports=reports)
    assert epsilon >= 0


@given(
    noise=st.floats(0.05, 50),
    more_noise=st.floats(1.01, 4),
    reports=st.integers(1, 1000),
)
def test_more_noise_or_fewer_reports_never_cost_more(noise, more_noise, reports):
    def epsilon(noise, reports):
        return gaussian_epsilon(noise_multiplier=noise, delta=1e-6, reports=reports)

    assert epsilon(noise * more_noise, reports) <= epsilon(noise, reports)
    assert epsilon(noise, reports) <= epsilon(noise, reports + 1)


@pytest.mark.parametrize(
    "broken",
    [
        {"noise_multiplier": -1.0},
        {"noise_multiplier": math.nan},
        {"noise_multiplier": math.inf},
        {"delta": 0.0},
        {"delta": 1.0},
        {"delta": math.nan},
        {"reports": -1},
        {"reports": math.nan},
    ],
)
def test_values_out_of_range_are_refused(broken):
    good = {"noise_multiplier": 1.0, "delta": 1e-5, "reports": 1}
    with pytest.raises(ValueError, match=next(iter(broken))):
        gaussian_epsilon(**{**good, **broken})


def test_a_devices_local_epsilon_is_of_its_share_at_twice_the_clip_norm():
    plan = plan_from_dict(plan_tree(privacy={"noise_multiplier": 40.0, "smallest_cohort": 25}))
    # A share of 40 C / sqrt(25) = 8 C against a sensitivity of 2 C.
    expected = gaussian_epsilon(noise_multiplier=4.0, delta=1e-5, reports=7)
    assert math.isclose(local_epsilon(plan, reports=7), expected, rel_tol=1e-9)
    assert local_epsilon(plan, reports=0) == 0


def test_noise_on_the_server_protects_nobody_from_the_server():
    plan = plan_from_dict(plan_tree(privacy={"noise": "server"}))
    assert local_epsilon(plan, reports=1) == math.inf
    assert local_epsilon(plan, reports=0) == 0


def test_an_uncalibrated_plan_has_no_local_epsilon_yet():
    tree = plan_tree(privacy={"noise_multiplier": None, "target_epsilon": 2.0})
    with pytest.raises(PlanError, match="calibrate_plan"):
        local_epsilon(plan_from_dict(tree), reports=1)
