"""The noise for a local epsilon, against other calibrations, and what plans may ask for."""

import json
import math

import pytest
from dp_accounting.gaussian_mechanism import get_sigma_gaussian
from dp_accounting.pld import privacy_loss_distribution
from hypothesis import given
from hypothesis import strategies as st
from plan_trees import plan_tree

from tf_dpfl.protocol import local_privacy
from tf_dpfl.protocol.errors import PlanError, TaskError
from tf_dpfl.protocol.gaussian import gaussian_epsilon, gaussian_noise_multiplier
from tf_dpfl.protocol.local_privacy import local_epsilon, require_asked_local_epsilon
from tf_dpfl.protocol.local_target import least_noise_multiplier
from tf_dpfl.protocol.plan import plan_from_dict, plan_to_dict
from tf_dpfl.protocol.plan_files import load_plan, plan_to_toml

EPSILONS, DELTAS = [0.05, 0.5, 1.0, 8.0, 50.0], [1e-2, 1e-5, 1e-9]


def local_plan(target=8.0, noise=None, **sections):
    privacy = {"target_local_epsilon": target, "noise_multiplier": noise}
    sections["privacy"] = privacy | sections.get("privacy", {})
    return plan_from_dict(plan_tree(**sections))


@pytest.mark.parametrize("epsilon", EPSILONS)
@pytest.mark.parametrize("delta", DELTAS)
def test_the_noise_is_that_of_dp_accountings_own_calibration(epsilon, delta):
    ours = gaussian_noise_multiplier(epsilon=epsilon, delta=delta)
    assert ours == pytest.approx(get_sigma_gaussian(epsilon, delta), rel=1e-3)


@pytest.mark.parametrize(("epsilon", "delta"), [(0.5, 1e-5), (1.0, 1e-3), (8.0, 1e-5), (20, 1e-9)])
def test_the_noise_gives_the_epsilon_by_privacy_loss_distributions(epsilon, delta):
    noise = gaussian_noise_multiplier(epsilon=epsilon, delta=delta)
    pld = privacy_loss_distribution.from_gaussian_mechanism(
        noise, value_discretization_interval=1e-3
    )
    assert pld.get_epsilon_for_delta(delta) == pytest.approx(epsilon, rel=0.01)


@given(
    epsilon=st.floats(1e-4, 1e4),
    log_delta=st.floats(-14, -0.1),
    reports=st.integers(1, 1000),
)
def test_solving_for_the_noise_undoes_the_closed_form(epsilon, log_delta, reports):
    delta = 10**log_delta
    noise = gaussian_noise_multiplier(epsilon=epsilon, delta=delta, reports=reports)
    kept = gaussian_epsilon(noise_multiplier=noise * (1 + 1e-9), delta=delta, reports=reports)
    assert kept <= epsilon
    missed = gaussian_epsilon(noise_multiplier=noise * (1 - 1e-6), delta=delta, reports=reports)
    assert missed > epsilon


@given(epsilon=st.floats(1e-3, 1e3), more=st.floats(1.01, 10), log_delta=st.floats(-12, -1))
def test_asking_for_less_never_takes_more_noise(epsilon, more, log_delta):
    def noise(epsilon, delta):
        return gaussian_noise_multiplier(epsilon=epsilon, delta=delta)

    delta = 10**log_delta
    assert noise(epsilon * more, delta) < noise(epsilon, delta)
    assert noise(epsilon, min(0.99, delta * more)) < noise(epsilon, delta)


def test_the_limits_of_the_noise():
    # delta(0) = 2 Phi(mu / 2) - 1, which is mu / sqrt(2 pi) for small mu.
    nearly_none = gaussian_noise_multiplier(epsilon=1e-12, delta=1e-3)
    assert nearly_none == pytest.approx(1 / (1e-3 * math.sqrt(2 * math.pi)), rel=1e-5)
    # mu^2 / 2 is what epsilon grows like.
    assert gaussian_noise_multiplier(epsilon=1e8, delta=0.5) == pytest.approx(
        1 / math.sqrt(2e8), rel=1e-3
    )
    many = gaussian_noise_multiplier(epsilon=2.0, delta=1e-5, reports=16)
    assert many == pytest.approx(4 * gaussian_noise_multiplier(epsilon=2.0, delta=1e-5), rel=1e-12)


@pytest.mark.parametrize(
    "broken",
    [{"epsilon": e} for e in (0.0, -1.0, math.nan, math.inf)]
    + [{"delta": d} for d in (0.0, 1.0, math.nan)]
    + [{"reports": r} for r in (0, -1, math.nan)],
)
def test_no_noise_is_solved_from_values_out_of_range(broken):
    good = {"epsilon": 1.0, "delta": 1e-5, "reports": 1}
    with pytest.raises(ValueError, match=next(iter(broken))):
        gaussian_noise_multiplier(**{**good, **broken})


@pytest.mark.parametrize("value", [0, -1, math.nan, math.inf, True, "8"])
def test_a_local_target_is_a_positive_number(value):
    with pytest.raises(PlanError, match="target_local_epsilon="):
        local_plan(value)


def test_a_plan_may_ask_for_it_alone_or_beside_a_central_target():
    assert local_plan().privacy.noise_multiplier is None
    assert local_plan(privacy={"target_epsilon": 2.0}).privacy.target_epsilon == 2.0
    with pytest.raises(PlanError, match="exactly one of the two"):
        local_plan(noise=900.0, privacy={"target_epsilon": 2.0})
    with pytest.raises(PlanError, match="or privacy.target_local_epsilon"):
        local_plan(None)


@pytest.mark.parametrize("mechanism", ["gaussian", "tree", "banded", "auto"])
def test_no_local_epsilon_holds_where_the_server_adds_the_noise(mechanism):
    sampling = {"sampling": "poisson" if mechanism in ("gaussian", "auto") else "min_separation"}
    privacy = {"noise": "server", "mechanism": mechanism, "target_epsilon": 2.0}
    with pytest.raises(PlanError) as caught:
        local_plan(clients=sampling, privacy=privacy)
    (fault,) = caught.value.faults
    assert 'does not go with noise="server"' in fault and "correlated" in fault


@pytest.mark.parametrize("unit", ["user", "example"])
def test_a_noise_multiplier_beside_it_must_give_it(unit):
    sections = {"privacy": {"unit": unit, "delta": 1e-6}, "local_training": {"epochs": 3}}
    least = least_noise_multiplier(local_plan(**sections))
    kept = local_plan(noise=least * (1 + 1e-9), **sections)
    assert local_epsilon(kept, reports=1) <= 8.0
    with pytest.raises(PlanError, match=r"is too small for .*set it to [\d.]+ or more") as caught:
        local_plan(noise=least * (1 - 1e-6), **sections)
    said = float(str(caught.value).split("set it to ")[1].split()[0])
    assert least < said < least * 1.0001
    local_plan(noise=said, **sections)


def test_a_larger_cohort_to_share_the_noise_is_refused_for_a_fixed_noise():
    least = least_noise_multiplier(local_plan())  # 25 shares
    local_plan(noise=least * 1.001, privacy={"smallest_cohort": 24})
    with pytest.raises(PlanError, match="smallest_cohort=26 shares"):
        local_plan(noise=least * 1.001, privacy={"smallest_cohort": 26})


def test_a_named_target_replaces_the_noise_of_a_plan(tmp_path):
    file = tmp_path / "plan.toml"
    file.write_text(plan_to_toml(plan_from_dict(plan_tree())))
    plan = load_plan(file, overrides=["privacy.target_local_epsilon=8"])
    assert plan.privacy.noise_multiplier is None and plan.privacy.target_local_epsilon == 8
    both = ["privacy.target_local_epsilon=8", "privacy.noise_multiplier=900"]
    assert load_plan(file, overrides=both).privacy.noise_multiplier == 900


def test_plans_without_one_are_written_as_before():
    assert "target_local_epsilon" not in json.dumps(plan_to_dict(plan_from_dict(plan_tree())))
    plan = local_plan(noise=900.0)
    assert plan_from_dict(json.loads(json.dumps(plan_to_dict(plan)))) == plan


def test_what_is_asked_is_held_against_the_share_that_is_drawn(monkeypatch):
    plan = local_plan(noise=least_noise_multiplier(local_plan()) * (1 + 1e-9))
    require_asked_local_epsilon(plan)
    require_asked_local_epsilon(plan_from_dict(plan_tree()))  # asks for none
    real = local_privacy.noise_stddev_of_share
    monkeypatch.setattr(
        local_privacy, "noise_stddev_of_share", lambda **values: 0.999 * real(**values)
    )
    with pytest.raises(TaskError, match=r"asks for a local epsilon of 8 .* gives 8\.0"):
        require_asked_local_epsilon(plan)
