"""From plans to what a search costs: searched noise, sampling and targets are followed."""

import math
from dataclasses import replace

import pytest
from plans import digits_plan

from tf_dpfl.privacy.accounting import central_epsilon
from tf_dpfl.privacy.calibration import calibrate_plan
from tf_dpfl.privacy.mechanism import mechanism_of_plan
from tf_dpfl.simulation.tuning_charges import Calibration, Charges, cost_in_words, cost_json
from tf_dpfl.simulation.tuning_keys import grid
from tf_dpfl.simulation.tuning_plans import search_of

PLAN = digits_plan(noise_multiplier=1.0, noise="server")
PLAN = replace(PLAN, clients=replace(PLAN.clients, sampling="poisson"))


def charges_of(*over, plan=PLAN, **options):
    search = search_of(plan, over, data_is="private", **options)
    return search, Charges(search, Calibration())


def cost_of(*over, plan=PLAN, **options):
    search, charges = charges_of(*over, plan=plan, **options)
    return charges.cost(grid(search.keys))


def spent(*plans):
    mechanisms = [mechanism_of_plan(plan, rounds=plan.server.rounds) for plan in plans]
    return central_epsilon(mechanisms, delta=PLAN.privacy.delta)


def test_every_try_is_charged_with_its_own_noise():
    loud = PLAN.with_noise_multiplier(0.7)
    assert cost_of("noise_multiplier=1,0.7").epsilon == pytest.approx(spent(PLAN, loud), rel=1e-9)
    assert cost_of("clip_norm=1,2").epsilon == pytest.approx(spent(PLAN, PLAN), rel=1e-9)


def test_a_target_is_solved_for_every_kind_of_try():
    plans = [
        calibrate_plan(
            replace(plan, privacy=replace(plan.privacy, noise_multiplier=None, target_epsilon=3.0))
        )
        for plan in (PLAN, replace(PLAN, server=replace(PLAN.server, rounds=6)))
    ]
    cost = cost_of("target_epsilon=3", "rounds=3,6")
    assert cost.epsilon == pytest.approx(spent(*plans), rel=1e-6)
    calibrated = Calibration()
    for norm in (0.1, 2.0):
        plan = replace(
            PLAN,
            privacy=replace(
                PLAN.privacy, noise_multiplier=None, target_epsilon=3.0, clip_norm=norm
            ),
        )
        assert calibrated(plan) == calibrate_plan(plan)


def test_a_local_target_is_solved_for_every_try():
    privacy = replace(PLAN.privacy, noise="device", noise_multiplier=None, target_local_epsilon=4.0)
    asking = replace(PLAN, privacy=privacy)
    noises = {
        target: calibrate_plan(
            replace(asking, privacy=replace(privacy, target_local_epsilon=target))
        )
        for target in (4.0, 8.0)
    }
    cost = cost_of("target_local_epsilon=4,8", plan=asking)
    assert cost.epsilon == pytest.approx(spent(*noises.values()), rel=1e-9)
    assert Calibration()(asking) == noises[4.0]


def test_the_relation_is_one_that_holds_for_every_try():
    assert cost_of("clip_norm=1,2").relation == "add-or-remove-one"
    assert cost_of("privacy.noise=server,device").relation == "zero-out"
    assert cost_of("sampling=poisson,fixed").relation == "zero-out"


def test_every_sampling_that_is_tried_is_named():
    search, charges = charges_of("sampling=poisson,fixed", "clients_per_round=8,10")
    cost = charges.cost(grid(search.keys))
    text = " ".join(cost_in_words(search, cost, tries=4, samplings=charges.samplings()))
    for said in ("Poisson", "fixed-size", "probability 0.2", "probability 0.25"):
        assert said in text


def test_a_mechanism_is_searched_with_the_sampling_it_needs():
    apart = replace(PLAN, clients=replace(PLAN.clients, sampling="min_separation"))
    apart = replace(apart, privacy=replace(apart.privacy, mechanism="banded"))
    search, charges = charges_of("mechanism=banded,tree", plan=apart, folds=2)
    cost = charges.cost(grid(search.keys))
    assert cost.relation == "zero-out" and cost.epsilon < cost.epsilon_with_training < math.inf
    text = " ".join(cost_in_words(search, cost, tries=2, samplings=charges.samplings()))
    assert "in none of the 4 rounds after it" in text


def test_a_random_search_states_both_prices():
    search, charges = charges_of("clip_norm=0.1..1", method="random", folds=2)
    cost = charges.cost([{"privacy.clip_norm": 0.5}] * 30)
    text = " ".join(cost_in_words(search, cost, tries=30, samplings=charges.samplings()))
    for number in (cost.epsilon, cost.epsilon_of_all_tries, cost.epsilon_with_training):
        assert f"{number:.4g}" in text
    assert "stays secret" in text and "noise of 5 users" in text
    tree = cost_json(search, cost)
    assert tree["epsilon"] == cost.epsilon and tree["delta"] == PLAN.privacy.delta


def test_a_plan_without_noise_is_said_to_cost_without_bound():
    plan = PLAN.with_noise_multiplier(0.0)
    search, charges = charges_of("clip_norm=1,2", plan=plan)
    cost = charges.cost(grid(search.keys))
    assert cost.epsilon == math.inf and cost_json(search, cost)["epsilon"] is None
    assert "epsilon infinite" in " ".join(cost_in_words(search, cost, tries=2))
