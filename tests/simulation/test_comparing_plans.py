"""The variants of a plan: one epsilon for all of them, and a reason where there is none."""

from dataclasses import replace

import pytest
from plans import correlated_plan, digits_plan

from tf_dpfl.privacy.accounting import central_epsilon
from tf_dpfl.privacy.calibration import calibrate_plan
from tf_dpfl.privacy.choice import model_error
from tf_dpfl.privacy.mechanism import mechanism_of_plan
from tf_dpfl.protocol.errors import PlanError
from tf_dpfl.protocol.plan import plan_from_dict, plan_to_dict
from tf_dpfl.simulation.comparing_cost import cost_of
from tf_dpfl.simulation.comparing_outcome import Traffic, traffic_of
from tf_dpfl.simulation.comparing_plans import (
    NAMES,
    NO_CLIPPING,
    WITHOUT_PRIVACY,
    all_variants,
    comparison_of,
)

POISSON = digits_plan(noise_multiplier=1.0)
POISSON = replace(POISSON, clients=replace(POISSON.clients, sampling="poisson"))
WITH_PRIVACY = [name for name in NAMES if name not in WITHOUT_PRIVACY]


def epsilon_of(plan):
    release = mechanism_of_plan(plan, rounds=plan.server.rounds)
    return central_epsilon([release], delta=plan.privacy.delta)


def by_name(plan):
    return {variant.name: variant for variant in all_variants(plan)[1]}


def with_privacy(plan, **privacy):
    tree = plan_to_dict(plan)
    tree["privacy"].pop("noise_multiplier")
    tree["privacy"].update(privacy)
    return plan_from_dict(tree)


ADAPTIVE = with_privacy(
    POISSON, noise_multiplier=1.0, adaptive_clipping=True, clip_count_stddev=2.0
)


@pytest.mark.parametrize(
    ("plan", "target"),
    [
        (POISSON, epsilon_of(POISSON)),
        (with_privacy(POISSON, target_epsilon=2.0), 2.0),
        (with_privacy(POISSON, target_epsilon=3.0, noise="server", mechanism="auto"), 3.0),
        (correlated_plan("banded", bands=3), epsilon_of(correlated_plan("banded", bands=3))),
        (correlated_plan("tree"), epsilon_of(correlated_plan("tree"))),
    ],
)
def test_every_private_variant_has_the_plans_epsilon(plan, target):
    epsilon, variants = all_variants(plan)
    assert epsilon == target
    assert [v.name for v in variants] == list(NAMES)
    for variant in variants:
        assert variant.is_run, variant.why_not
        reached = epsilon_of(variant.plan)
        if variant.name in WITH_PRIVACY:
            assert 0.99 * target <= reached <= target * (1 + 1e-9)
        else:
            assert reached == float("inf")


def test_a_variant_that_is_the_plan_itself_keeps_its_noise():
    for plan, name in (
        (POISSON, "device-gaussian"),
        (correlated_plan("tree"), "server-tree"),
        (correlated_plan("banded", bands=3), "server-banded"),
    ):
        variant = by_name(plan)[name].plan
        assert replace(variant, simulation=plan.simulation) == plan


def test_a_local_target_stays_with_the_devices_and_sets_the_common_epsilon():
    asked = {"noise_multiplier": None, "target_local_epsilon": 4.0, "target_epsilon": 20.0}
    plan = with_privacy(POISSON, **asked)
    epsilon, variants = all_variants(plan)
    assert epsilon == epsilon_of(calibrate_plan(plan)) < 20
    for variant in variants:
        local = variant.plan.privacy.target_local_epsilon
        assert local == (4.0 if variant.name == "device-gaussian" else None)
        if variant.name in WITH_PRIVACY:
            assert 0.99 * epsilon <= epsilon_of(variant.plan) <= epsilon * (1 + 1e-9)


def test_nothing_but_privacy_and_its_sampling_differs():
    for variant in by_name(POISSON).values():
        same = replace(variant.plan, privacy=POISSON.privacy, simulation=POISSON.simulation)
        assert replace(same, clients=POISSON.clients) == POISSON
        assert variant.plan.clients.clients_per_round == POISSON.clients.clients_per_round
        if variant.name in WITH_PRIVACY:
            assert variant.plan.privacy.clip_norm == POISSON.privacy.clip_norm


def test_without_privacy_nothing_is_clipped_or_noised():
    plan = with_privacy(
        POISSON, noise_multiplier=1.0, clipping="value", clip_norm=1e-3, noise="device"
    )
    for name in WITHOUT_PRIVACY:
        privacy = by_name(plan)[name].plan.privacy
        assert (privacy.clip_norm, privacy.clipping) == (NO_CLIPPING, "global")
        assert privacy.noise_multiplier == 0


def test_sampling_goes_with_the_mechanism():
    def samplings(plan):
        return {name: v.plan.clients.sampling for name, v in by_name(plan).items()}

    correlated = {"server-tree": "min_separation", "server-banded": "min_separation"}
    own = dict.fromkeys(("central", "federated", "device-gaussian", "server-gaussian"), "poisson")
    assert samplings(POISSON) == own | correlated
    apart = correlated_plan("tree")
    independent = {"device-gaussian": "fixed", "server-gaussian": "fixed"}
    bare = {"central": "min_separation", "federated": "min_separation"}
    # A smallest cohort of 4 lies within three deviations of a Poisson cohort of 8: it would fail.
    assert samplings(apart) == bare | independent | correlated
    many = replace(apart.clients, population=800, clients_per_round=100)
    privacy = replace(apart.privacy, smallest_cohort=50, delta=1e-4)
    assert samplings(replace(apart, clients=many, privacy=privacy))["device-gaussian"] == "poisson"


def test_bands_are_those_of_the_least_error():
    found = by_name(POISSON)["server-banded"].plan
    others = []
    for bands in range(1, POISSON.server.rounds + 1):
        plan = correlated_plan("banded", rounds=POISSON.server.rounds, bands=bands)
        target = with_privacy(plan, target_epsilon=epsilon_of(POISSON))
        others.append(model_error(by_name(target)["server-banded"].plan))
    # Solved to 1 % of epsilon each.
    assert model_error(found) <= min(others) * 1.02


def test_example_level_plans_name_the_user_level_variants():
    tree = plan_to_dict(POISSON)
    tree["privacy"].update(unit="example", delta=1e-4)
    comparison = comparison_of(plan_from_dict(tree), data_is="public")
    reasons = {v.name: v.why_not for v in comparison.variants if not v.is_run}
    assert set(reasons) == {"server-gaussian", "server-tree", "server-banded"}
    assert all('unit="example"' in reason for reason in reasons.values())
    plans = {v.name: v.plan for v in comparison.variants if v.is_run}
    assert plans["device-gaussian"].privacy.unit == "example"
    assert plans["federated"].privacy.unit == "user"  # whole updates, unclipped


def test_a_plan_without_noise_has_no_epsilon_to_compare_at():
    comparison = comparison_of(digits_plan(), data_is="public")
    reasons = {v.name: v.why_not for v in comparison.variants if not v.is_run}
    assert set(reasons) == set(WITH_PRIVACY)
    assert all("set privacy.target_epsilon" in reason for reason in reasons.values())


def test_what_contradicts_a_mechanism_is_its_reason():
    reasons = {n: v.why_not for n, v in by_name(ADAPTIVE).items() if v.why_not}
    assert set(reasons) == {"server-tree", "server-banded"}
    assert all("adaptive_clipping=true does not go with" in why for why in reasons.values())


@pytest.mark.parametrize(
    ("plan", "options", "said"),
    [
        (POISSON, {"only": ["central", "tree"]}, "--only tree: the variants are central, fed"),
        (POISSON, {"data_is": "mine"}, "--data 'mine' must be public or"),
        (ADAPTIVE, {"only": ["server-tree"]}, "--only server-tree: .*adaptive"),
        (digits_plan(), {"data_is": "private"}, "central: left out on private data"),
    ],
)
def test_what_cannot_be_compared_is_refused(plan, options, said):
    with pytest.raises(PlanError, match=said):
        comparison_of(plan, **{"data_is": "public", **options})


def test_a_loss_without_accuracy_is_refused():
    tree = plan_to_dict(POISSON)
    tree["local_training"]["loss"] = "mean_squared_error"
    with pytest.raises(PlanError, match="has no accuracy"):
        comparison_of(plan_from_dict(tree), data_is="public")


def test_private_data_are_not_trained_on_without_privacy_unless_asked():
    comparison = comparison_of(POISSON, data_is="private")
    left = {v.name: v.why_not for v in comparison.variants if not v.is_run}
    assert set(left) == set(WITHOUT_PRIVACY)
    assert all("guarantees nothing" in reason for reason in left.values())
    asked = comparison_of(POISSON, data_is="private", only=["central"])
    assert [v.name for v in asked.variants if v.is_run] == ["central"]


def test_on_private_data_the_epsilons_of_all_variants_add_up():
    comparison = comparison_of(POISSON, data_is="private")
    cost = cost_of(comparison, WITH_PRIVACY)
    releases = [
        mechanism_of_plan(v.plan, rounds=v.plan.server.rounds)
        for v in comparison.variants
        if v.is_private
    ]
    expected = central_epsilon(releases, delta=POISSON.privacy.delta)
    assert cost.epsilon == pytest.approx(expected, rel=1e-9) and len(releases) == 4
    assert cost.epsilon > 1.5 * comparison.target_epsilon
    assert cost.to_json()["relation"] == "zero-out"  # noise on devices, as on the card
    words = " ".join(cost.in_words(is_seeded=False))
    assert f"epsilon {expected:.4g}" in words and "Unit: user" in words and "Adjacency" in words
    assert "models and accuracies may be published" in words
    assert "No price covers the counts of each round's reports" in words
    assert "GUARANTEE IS VOID" in " ".join(cost.in_words(is_seeded=True))


def test_one_variant_without_privacy_takes_the_guarantee_of_all():
    comparison = comparison_of(POISSON, data_is="private", only=["central", "device-gaussian"])
    cost = cost_of(comparison, ["central", "device-gaussian"])
    assert cost.epsilon == float("inf") and cost.to_json()["epsilon"] is None
    assert cost.to_json()["epsilon_of_variants_with_privacy"] == pytest.approx(
        comparison.target_epsilon, rel=1e-9
    )
    words = " ".join(cost.in_words(is_seeded=False))
    assert f"variant with privacy costs epsilon {comparison.target_epsilon:.4g}" in words
    assert "central: trained without privacy, which guarantees nothing" in words
    assert "no finite epsilon" in words


def test_public_data_cost_nothing_and_a_bare_variant_is_named_all_the_same():
    cost = cost_of(comparison_of(POISSON, data_is="public"), NAMES)
    assert cost.epsilon == 0
    words = " ".join(cost.in_words(is_seeded=False))
    assert "costs no privacy" in words and "central and federated" in words


def test_a_count_of_the_unclipped_travels_with_the_update():
    plans = {name: variant.plan for name, variant in by_name(ADAPTIVE).items()}
    found = {n: traffic_of(plans[n], weights=10) for n in ("federated", "device-gaussian")}
    assert found["federated"] == Traffic(down=40, up=40, once=0.0)
    assert found["device-gaussian"] == Traffic(down=40, up=44, once=0.0)
