"""What the best plan of a search says of it: every cost, and no secret."""

import math
from dataclasses import replace

import pytest
from plans import digits_plan

from tf_dpfl.privacy.accounting import central_epsilon
from tf_dpfl.privacy.card import privacy_card
from tf_dpfl.privacy.mechanism import mechanism_of_plan
from tf_dpfl.protocol.errors import PlanError
from tf_dpfl.protocol.plan_files import plan_to_toml
from tf_dpfl.protocol.tuning_section import Tuning
from tf_dpfl.simulation.tuning_charges import Calibration, Charges
from tf_dpfl.simulation.tuning_keys import grid
from tf_dpfl.simulation.tuning_plans import search_of
from tf_dpfl.simulation.tuning_statement import tuning_of

PLAN = digits_plan(noise_multiplier=2.0, noise="server")
PLAN = replace(PLAN, clients=replace(PLAN.clients, sampling="poisson"))
DELTA = PLAN.privacy.delta


def best_of(plan=PLAN, *over, data_is="private", tries=2, is_seeded=False, **options):
    """The best plan of a search over `plan`, as `tune` writes it, and the search's cost."""
    search = search_of(plan, over or ("clip_norm=0.5,1",), data_is=data_is, **options)
    charges = Charges(search, Calibration())
    cost = charges.cost(grid(search.keys)) if search.is_private else None
    samplings = charges.samplings() if search.is_private else ()
    tuning = tuning_of(search, cost, plan, tries=tries, samplings=samplings, is_seeded=is_seeded)
    return replace(plan, tuning=tuning), cost


def card_of(plan):
    return privacy_card(plan, rounds_done=0, sampling_enforced_by="this test")


def spent(*rounds):
    return central_epsilon([mechanism_of_plan(PLAN, rounds=n) for n in rounds], delta=DELTA)


def test_a_grid_is_stated_with_its_tries_and_their_composition():
    best, cost = best_of()
    tuning = best.tuning
    assert (tuning.method, tuning.tries, tuning.data) == ("grid", 2, "private")
    assert tuning.over == "privacy.clip_norm in 0.5, 1.0"
    assert tuning.epsilon == cost.epsilon == pytest.approx(spent(6), rel=1e-9)
    # Training the best plan once more on the same users is a third training.
    assert card_of(best).tuning.total == (pytest.approx(spent(9), rel=1e-9), DELTA)


def test_a_random_search_writes_no_number_that_its_price_rests_on():
    best, cost = best_of(PLAN, "clip_norm=0.1..1", method="random", mean_tries=4.0, tries=4711)
    assert best.tuning.tries is None and "4711" not in plan_to_toml(best)
    assert best.tuning.mean_tries == 4.0 and "repeat and select" in best.tuning.accountant
    assert spent(3) < best.tuning.epsilon == cost.epsilon
    total, delta = card_of(best).tuning.total
    assert cost.epsilon < total < cost.epsilon + spent(3) and delta == DELTA


def test_public_searches_cost_nothing_and_may_say_everything():
    best, _ = best_of(data_is="public", method="random", tries=7)
    assert best.tuning.tries == 7 and not best.tuning.is_charged
    assert card_of(best).tuning.total == (card_of(best).central_epsilon_planned, DELTA)
    assert "Poisson" not in best.tuning.sampling


def test_folds_are_named_with_the_training_that_follows_them():
    best, cost = best_of(folds=2)
    assert best.tuning.folds == 2
    assert card_of(best).tuning.total[0] == cost.epsilon_with_training > cost.epsilon


def test_a_second_search_adds_to_the_first_one():
    first, cost = best_of()
    second, _ = best_of(first, "clip_norm=0.7,0.8", "server.learning_rate=0.5,1", tries=4)
    assert second.tuning.epsilon == pytest.approx(cost.epsilon + spent(12), rel=1e-9)
    assert second.tuning.delta == pytest.approx(2 * DELTA)
    assert "a grid search over privacy.clip_norm in 0.5, 1.0 on private" in second.tuning.earlier
    total, delta = card_of(second).tuning.total
    assert total > second.tuning.epsilon and delta == pytest.approx(2 * DELTA)


def test_a_public_search_forgets_no_private_one():
    first, cost = best_of(is_seeded=True)
    second, _ = best_of(first, "clip_norm=0.7,0.8", data_is="public")
    assert second.tuning.epsilon == cost.epsilon and second.tuning.is_charged
    assert second.tuning.seeded and second.tuning.data == "public"
    cost_on_card = card_of(second).to_json()["tuning"]["cost"]
    assert cost_on_card["epsilon_with_this_training"] == cost.epsilon + spent(3)


def test_what_the_author_said_stays_beside_a_search():
    own = replace(PLAN, tuning=Tuning(how="as in the paper", data="public"))
    assert best_of(own)[0].tuning.how == "as in the paper"


@pytest.mark.parametrize("data", ["private", "unstated"])
def test_a_public_search_makes_no_public_choice_of_what_was_tried_on_users(data):
    own = replace(PLAN, tuning=Tuning(how="rates from twenty runs", data=data))
    best, _ = best_of(own, data_is="public")
    again, _ = best_of(best, "clip_norm=0.7,0.8", data_is="synthetic")
    for plan in (best, again):
        card = card_of(plan)
        said = "says besides: rates from twenty runs; no number of this card covers that"
        assert said in card.tuning.in_words() and plan.tuning.how_data == data
        (line,) = (line for line in card.not_covered if "by trying them" in line)
        assert "rates from twenty runs" in line


def test_the_price_of_an_earlier_search_is_not_given_to_a_later_one():
    first, _ = best_of(PLAN, "clip_norm=0.1..1", method="random", mean_tries=4.0)
    second, _ = best_of(first, "clip_norm=0.7,0.8", data_is="public")
    words = card_of(second).tuning.in_words()
    assert "it costs these users none, and what came before it costs what is stated below" in words
    third, _ = best_of(first, "clip_norm=0.7,0.8")
    for plan in (second, third):
        against = card_of(plan).to_json()["tuning"]["cost"]["against"]
        assert "of a random search its best try alone" in against


def test_an_earlier_search_without_noise_stays_infinite():
    first, cost = best_of(PLAN.with_noise_multiplier(0.0))
    assert cost.epsilon == math.inf and first.tuning.epsilon is None
    second, _ = best_of(replace(PLAN, tuning=first.tuning))
    assert second.tuning.epsilon is None and card_of(second).tuning.epsilon == math.inf


def test_searches_for_two_units_have_no_common_price():
    first, _ = best_of()
    privacy = replace(first.privacy, unit="example", noise="device")
    with pytest.raises(PlanError, match="counted for another unit"):
        search_of(replace(first, privacy=privacy), ["clip_norm=0.5,1"], data_is="private")


@pytest.mark.parametrize("key", ["tuning.how=a,b", "tuning.tries=1,2"])
def test_what_is_said_of_a_search_is_not_searched(key):
    with pytest.raises(PlanError, match="it changes nothing"):
        search_of(PLAN, [key], data_is="public")
