"""The card tells how the settings were chosen, and never leaves out what a search cost."""

import hashlib
import json
from dataclasses import replace

import pytest
from privacy_plans import small_plan

from tf_dpfl.privacy.card import privacy_card
from tf_dpfl.privacy.card_tuning import digest_of_training
from tf_dpfl.privacy.mechanism import GaussianRounds, mechanism_of_plan
from tf_dpfl.protocol.errors import PlanError
from tf_dpfl.protocol.plan import plan_from_dict, plan_to_dict
from tf_dpfl.protocol.plan_files import load_plan, plan_to_toml
from tf_dpfl.protocol.tuning_section import Tuning
from tf_dpfl.simulation.report import write_report

COINS = "this test: independent coins"
PLAIN = small_plan()
GRID = Tuning(
    data="private",
    method="grid",
    over="privacy.clip_norm in 0.1, 1.0",
    tries=2,
    delta=1e-5,
    epsilon=1.5,
    adjacency="zero-out",
    sampling="Poisson: as in training",
    accountant="PLD",
    epsilon_with_training=1.75,
    trained=digest_of_training([mechanism_of_plan(PLAIN, rounds=20)]),
)
RANDOM = replace(GRID, method="random", tries=None, mean_tries=10.0)


def card_of(plan, tuning=None, *, rounds_done=5, **kwargs):
    plan = plan if tuning is None else replace(plan, tuning=tuning)
    return privacy_card(plan, rounds_done=rounds_done, sampling_enforced_by=COINS, **kwargs)


def in_one_line(card):
    return " ".join(card.to_text().split())


def test_a_plan_that_says_nothing_is_said_to_say_nothing():
    card = card_of(PLAIN)
    tree = card.to_json()["tuning"]
    assert tree["stated_by"] is None and tree["cost"] is None
    text = in_one_line(card)
    assert "Settings: how they were chosen is not stated" in text
    assert "no number of this card covers trying them on users" in text
    assert any("by trying them on the same users" in line for line in card.not_covered)


@pytest.mark.parametrize("data", ["public", "synthetic"])
def test_settings_from_data_of_nobody_cost_nothing_in_their_authors_words(data):
    card = card_of(PLAIN, Tuning(how="rates tried on EMNIST", data=data))
    text = in_one_line(card)
    assert f"the plan's author says: rates tried on EMNIST; on {data} data" in text
    assert "costs these users nothing" in text
    assert not any("by trying them on the same users" in line for line in card.not_covered)
    assert any("what else was learned from users" in line for line in card.not_covered)
    assert card.to_json()["tuning"]["stated_by"] == "the plan's author"


@pytest.mark.parametrize("data", ["private", "unstated"])
def test_settings_from_users_without_a_price_stay_uncovered(data):
    card = card_of(PLAIN, Tuning(how="twenty runs by hand", data=data))
    assert "no number of this card covers that" in in_one_line(card)
    (line,) = (line for line in card.not_covered if "by trying them" in line)
    assert "twenty runs by hand" in line


@pytest.mark.parametrize("method", ["grid", "random"])
def test_a_search_on_public_data_is_named_and_costs_nothing(method):
    found = Tuning(data="public", method=method, over="clip_norm in 1, 2", tries=4, mean_tries=9.0)
    card = card_of(PLAIN, found)
    text = in_one_line(card)
    for said in (f"a {method} search of 4 tries", "over clip_norm in 1, 2", "on public data"):
        assert said in text
    assert "it costs these users none" in text
    tree = card.to_json()["tuning"]
    assert tree["stated_by"] == "dpfl tune" and tree["cost"] is None and tree["tries"] == 4


def test_a_search_on_private_data_stands_with_its_price_and_its_terms():
    card = card_of(PLAIN, GRID)
    cost = card.to_json()["tuning"]["cost"]
    assert cost["epsilon"] == 1.5 and cost["delta"] == 1e-5
    assert cost["epsilon_with_this_training"] == 1.75 and cost["delta_with_this_training"] == 1e-5
    for term in ("against", "unit", "adjacency", "sampling", "accountant"):
        assert cost[term]
    (paragraph,) = (p for p in card.to_text().split("\n\n") if "the search for the settings" in p)
    flat = " ".join(paragraph.split())
    assert flat.startswith("Against whoever sees") and "all of its tries" in flat
    for said in (
        "epsilon 1.5 at delta 1e-05 for the search; 1.75 at delta 1e-05 with all rounds",
        "unit: user",
        "adjacency: zero-out",
        "sampling: Poisson",
        "accountant: PLD",
    ):
        assert said in flat


def test_a_random_search_keeps_its_number_of_tries_to_itself():
    card = card_of(PLAIN, RANDOM)
    text = in_one_line(card)
    assert "a random search of a secret number of tries, 10 in the mean" in text
    assert "its best try alone" in text and card.to_json()["tuning"]["tries"] is None


@pytest.mark.parametrize(
    ("plan", "kwargs"),
    [
        (small_plan(server={"rounds": 40}), {}),
        (small_plan(privacy={"noise_multiplier": 0.9}), {}),
        (small_plan(clients={"clients_per_round": 60}), {}),
        (PLAIN, {"prior": (GaussianRounds(1.0, "poisson", 0.05, 1),)}),
        (PLAIN, {"rounds_done": 21}),
    ],
)
def test_a_training_other_than_the_one_composed_with_is_added_up(plan, kwargs):
    """A plan changed after its search must not carry the price of the plan before."""
    card = card_of(plan, GRID, **kwargs)
    cost = card.to_json()["tuning"]["cost"]
    assert cost["epsilon_with_this_training"] == 1.5 + card.central_epsilon_planned
    assert cost["delta_with_this_training"] == 2e-5


def test_sampling_that_nobody_enforces_is_another_training():
    card = privacy_card(replace(PLAIN, tuning=GRID), rounds_done=5)
    cost = card.to_json()["tuning"]["cost"]
    assert cost["epsilon_with_this_training"] == 1.5 + card.central_epsilon_planned > 5


def test_no_total_is_made_of_two_units():
    plan = small_plan(privacy={"unit": "example"})
    card = card_of(plan, replace(GRID, trained=""))
    cost = card.to_json()["tuning"]["cost"]
    assert cost["epsilon"] == 1.5 and cost["unit"].startswith("user")
    assert cost["epsilon_with_this_training"] is None
    assert "counted for another unit than this training" in in_one_line(card)


def test_a_search_without_noise_is_infinite_in_words():
    card = card_of(PLAIN, replace(GRID, epsilon=None, epsilon_with_training=None))
    cost = json.loads(json.dumps(card.to_json(), allow_nan=False))["tuning"]["cost"]
    assert cost["epsilon"] is None and cost["epsilon_text"] == "infinite"
    assert cost["epsilon_with_this_training_text"] == "infinite"
    assert "epsilon infinite at delta 1e-05 for the search; infinite at" in in_one_line(card)


def test_a_search_whose_seed_somebody_knows_says_so():
    assert "GUARANTEE IS VOID" in in_one_line(card_of(PLAIN, replace(GRID, seeded=True)))
    assert "GUARANTEE IS VOID" not in in_one_line(card_of(PLAIN, GRID))


def test_earlier_searches_and_the_authors_own_words_stay():
    text = in_one_line(card_of(PLAIN, replace(GRID, earlier="a grid search over x", how="mine")))
    assert "before that: a grid search over x" in text
    assert "author says besides: mine" in text


def test_the_report_shows_the_settings_too(tmp_path):
    write_report(tmp_path / "report.html", [], card_of(PLAIN, GRID))
    report = " ".join((tmp_path / "report.html").read_text().split())
    assert (
        "Settings: chosen by dpfl tune, a grid search of 2 tries over privacy.clip_norm" in report
    )


def test_the_section_survives_files_and_older_plans_have_none(tmp_path):
    plan = replace(PLAIN, tuning=replace(GRID, how='with "quotes" and \u00fc', earlier="one"))
    file = tmp_path / "plan.toml"
    file.write_text(plan_to_toml(plan))
    assert load_plan(file) == plan
    assert plan_from_dict(json.loads(json.dumps(plan_to_dict(plan)))) == plan
    assert "tuning" not in plan_to_dict(PLAIN) and "[tuning]" not in plan_to_toml(PLAIN)


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"epsilon": 1.0}, "written by dpfl tune"),
        ({"tries": 3}, "written by dpfl tune"),
        ({"data": "public"}, 'tuning.data="public" needs tuning.how'),
        ({"data": "private", "how": ""}, 'tuning.data="private" needs tuning.how'),
        ({"method": "grid", "tries": 3}, "needs tuning.data"),
        ({"method": "grid", "data": "public"}, "needs tuning.tries"),
        ({"method": "random", "data": "public"}, "needs tuning.mean_tries"),
        ({"method": "grid", "tries": 3, "data": "private"}, "needs tuning.delta"),
        ({"method": "grid", "tries": 3, "data": "private", "delta": 1e-5}, "needs tuning.delta"),
        ({"how": 3}, "tuning.how=3"),
        ({"colour": "red"}, "unknown key tuning.colour"),
    ],
)
def test_a_price_is_stated_whole_or_not_at_all(section, said):
    with pytest.raises(PlanError, match=said):
        plan_from_dict(plan_to_dict(PLAIN) | {"tuning": section})


def test_the_digest_names_what_is_released():
    one = mechanism_of_plan(PLAIN, rounds=20)
    content = json.dumps([one.to_json()], sort_keys=True).encode()
    assert digest_of_training([one]) == hashlib.sha256(content).hexdigest()[:32]
    assert digest_of_training([one]) != digest_of_training([one.with_rounds(21)])
