"""Plans that ask for a local epsilon: the noise they get, and what the card says it costs."""

import math

import pytest
from dp_accounting.gaussian_mechanism import get_sigma_gaussian
from privacy_plans import small_plan

from tf_dpfl.privacy.accounting import central_epsilon
from tf_dpfl.privacy.calibration import calibrate_plan, solve_plan
from tf_dpfl.privacy.card import privacy_card
from tf_dpfl.privacy.mechanism import mechanism_of_plan
from tf_dpfl.privacy.preflight import preflight
from tf_dpfl.protocol.errors import PlanError
from tf_dpfl.protocol.local_privacy import local_epsilon


def asking(target=8.0, *, privacy=(), **sections):
    """Solved as `dpfl` does; 25 devices share the noise."""
    privacy = {"noise_multiplier": None, "target_local_epsilon": target, **dict(privacy)}
    return calibrate_plan(small_plan(privacy=privacy, **sections))


def central(plan):
    release = mechanism_of_plan(plan, rounds=plan.server.rounds)
    return central_epsilon([release], delta=plan.privacy.delta)


def card_of(plan, **kwargs):
    return privacy_card(plan, rounds_done=0, sampling_enforced_by="this test", **kwargs)


def in_one_line(card):
    return " ".join(card.to_text().split())


@pytest.mark.parametrize("target", [0.01, 0.5, 8.0, 300.0])
@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"privacy": {"clip_norm": 30.0, "smallest_cohort": 1}},
        {"privacy": {"clipping": "per_layer"}, "clients": {"sampling": "fixed"}},
        {"privacy": {"unit": "example", "delta": 1e-6}, "local_training": {"epochs": 3}},
    ],
)
def test_one_report_has_the_local_epsilon_and_no_less(target, sections):
    plan = asking(target, **sections)
    assert target * (1 - 1e-6) <= local_epsilon(plan, reports=1) <= target
    assert plan.privacy.target_local_epsilon == target  # devices go on holding it
    assert calibrate_plan(plan) == plan


def test_the_share_is_the_analytic_gaussian_mechanisms_at_twice_the_clip_norm():
    share = asking(2.0).privacy.noise_multiplier * 0.5 / math.sqrt(25)
    assert share == pytest.approx(2 * 0.5 * get_sigma_gaussian(2.0, 1e-5), rel=1e-3)


def test_of_two_targets_the_one_that_needs_more_noise_decides():
    local, for_models = (
        asking(8.0),
        calibrate_plan(small_plan(privacy={"noise_multiplier": None, "target_epsilon": 0.5})),
    )
    both = asking(8.0, privacy={"target_epsilon": 0.5})
    assert both.privacy.noise_multiplier == local.privacy.noise_multiplier
    assert central(both) < 0.99 * 0.5
    strict = asking(300.0, privacy={"target_epsilon": 0.5})
    assert strict.privacy.noise_multiplier == for_models.privacy.noise_multiplier
    assert 0.99 * 0.5 <= central(strict) <= 0.5
    assert local_epsilon(strict, reports=1) < 300.0
    said = [card.to_json()["local"]["noise_decided_by"] for card in map(card_of, (both, strict))]
    assert said[0] == "privacy.target_local_epsilon"
    assert "target_epsilon" in said[1] and "more noise" in said[1]


def test_what_no_plan_can_give_is_refused():
    with pytest.raises(PlanError, match="needs a noise multiplier of .* ask for a larger one"):
        asking(1e-9, privacy={"delta": 1e-9})


def test_a_count_that_would_take_all_the_noise_is_refused():
    """Adaptive clipping: both releases of a device together keep to the local target."""
    with pytest.raises(PlanError, match="clip_count_stddev"):
        asking(2.0, privacy={"adaptive_clipping": True, "clip_count_stddev": 1.0})
    plan = asking(2.0, privacy={"adaptive_clipping": True, "clip_count_stddev": 50.0})
    assert plan.noise_multiplier_of_updates > plan.privacy.noise_multiplier


def test_rounds_and_cohorts_are_solved_for_with_the_noise_of_the_local_target():
    plan = asking(8.0)
    for what in ("rounds", "cohort"):
        solved = solve_plan(plan, target_epsilon=1.0, what=what)
        assert central(solved) <= 1.0
        assert local_epsilon(solved, reports=1) == local_epsilon(plan, reports=1)
    assert solve_plan(plan, target_epsilon=1.0, what="rounds").server.rounds > 20


def test_the_card_shows_what_a_local_epsilon_costs():
    plan = asking(2.0)
    card = card_of(plan)
    local = card.to_json()["local"]
    assert local["epsilon_asked_of_one_report"] == 2.0
    assert local["epsilon_one_report"] == pytest.approx(2.0, rel=1e-6)
    for_models = calibrate_plan(
        small_plan(privacy={"noise_multiplier": None, "target_epsilon": 2.0})
    ).privacy.noise_multiplier
    noise, cost = plan.privacy.noise_multiplier, local["cost"]
    assert cost["noise_multiplier"] == noise
    assert cost["noise_multiplier_for_the_models_alone"] == for_models
    assert cost["times_the_noise"] == pytest.approx(noise / for_models)
    text = in_one_line(card)
    for said in (
        "asked by the plan: epsilon 2 for one report",
        "the noise is decided by privacy.target_local_epsilon",
        f"{noise / for_models:.3g} times the noise in every average",
        f"the released models have epsilon {card.central_epsilon_planned:.4g}",
        f"models of up to {cost['most_weights_heard']} weights are heard",
        f"from {cost['weights_drowned']} on",
    ):
        assert said in text, said


def test_the_weights_that_are_heard_are_those_of_the_preflight():
    plan = asking(2.0)
    cost = card_of(plan).local_cost
    assert not preflight(plan, weights=cost.most_weights_heard).warning
    warning = preflight(plan, weights=cost.most_weights_heard + 1).warning
    assert "will learn little" in warning
    assert "can not learn" not in preflight(plan, weights=cost.weights_drowned - 1).warning
    drowned = preflight(plan, weights=cost.weights_drowned).warning
    assert "can not learn" in drowned


def test_the_preflight_speaks_of_the_local_target_that_would_do():
    plan = asking(2.0)
    found = preflight(plan, weights=2000)
    assert "privacy.noise_multiplier" not in found.warning
    advised = float(found.warning.split("privacy.target_local_epsilon=")[1].split()[0])
    assert preflight(asking(advised), weights=2000).signal_to_noise == pytest.approx(3, rel=0.01)


def test_the_preflight_advises_nothing_that_changes_nothing():
    """Where something else than the local target decides the noise, a larger one leaves it."""
    plan = asking(300.0, privacy={"target_epsilon": 0.5})
    assert not card_of(plan).local_cost.decides
    slightly = preflight(plan, weights=card_of(plan).local_cost.most_weights_heard + 1).warning
    assert "privacy.noise_multiplier=" in slightly and "local_epsilon" not in slightly
    louder = asking(2.0).with_noise_multiplier(1.1 * asking(2.0).privacy.noise_multiplier)
    much = preflight(louder, weights=2000).warning
    noise = float(much.split("privacy.noise_multiplier=")[1].split()[0])
    local = float(much.split("privacy.target_local_epsilon=")[1].split()[0])
    advised = small_plan(privacy={"noise_multiplier": noise, "target_local_epsilon": local})
    assert preflight(advised, weights=2000).signal_to_noise == pytest.approx(3, rel=0.01)


def test_the_noise_in_every_average_is_that_of_the_updates():
    """Beside a count the updates' noise is above the plan's multiplier, out of proportion."""
    adapting = {"adaptive_clipping": True, "clip_count_stddev": 60.0}
    plan = asking(0.5, privacy=adapting)
    alone = small_plan(privacy={"noise_multiplier": None, "target_epsilon": 0.5, **adapting})
    for_models = calibrate_plan(alone)
    times = plan.noise_multiplier_of_updates / for_models.noise_multiplier_of_updates
    assert times > 1.05 * plan.privacy.noise_multiplier / for_models.privacy.noise_multiplier
    assert card_of(plan).local_cost.times_the_noise == pytest.approx(times)


def test_examples_have_a_price_in_noise_and_none_in_weights():
    plan = asking(2.0, privacy={"unit": "example", "delta": 1e-6})
    cost = card_of(plan).local_cost
    assert cost.times_the_noise > 1
    assert cost.most_weights_heard is None and "weights are heard" not in in_one_line(card_of(plan))


def test_an_epsilon_that_models_can_not_be_made_to_have_is_not_compared_with():
    plan = asking(5e6)
    cost = card_of(plan).local_cost
    assert cost.noise_multiplier_for_models is None and cost.times_the_noise is None
    assert "times the noise" not in in_one_line(card_of(plan))


def test_plans_that_ask_for_nothing_pay_nothing():
    card = card_of(small_plan())
    assert card.local_cost is None and "epsilon_asked_of_one_report" not in card.to_json()["local"]
    assert "asked by the plan" not in in_one_line(card)


def test_noise_of_the_plans_own_is_said_to_decide():
    plan = asking(8.0)
    louder = plan.with_noise_multiplier(plan.privacy.noise_multiplier * 1.1)
    assert not card_of(louder).local_cost.decides and card_of(plan).local_cost.decides
    # What is drowned out follows the noise, not the target.
    ratio = (
        card_of(plan).local_cost.most_weights_heard / card_of(louder).local_cost.most_weights_heard
    )
    assert ratio == pytest.approx(1.21, rel=0.02)
