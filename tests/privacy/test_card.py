"""The card never shows an epsilon without who it is against and what it rests on."""

import json
import math
import re

import pytest
from privacy_plans import small_plan

from tf_dpfl.privacy.accounting import central_epsilon
from tf_dpfl.privacy.card import CARD_VERSION, privacy_card
from tf_dpfl.privacy.mechanism import (
    ExampleGaussianEpochs,
    GaussianRounds,
    mechanism_from_json,
    mechanism_of_plan,
)
from tf_dpfl.protocol.errors import PlanError
from tf_dpfl.protocol.gaussian import gaussian_epsilon
from tf_dpfl.protocol.local_privacy import local_epsilon

COINS = "simulation: each client of the population is drawn by an independent coin"


def card_of(plan, *, rounds_done=5, enforced=COINS, **kwargs):
    return privacy_card(plan, rounds_done=rounds_done, sampling_enforced_by=enforced, **kwargs)


def in_one_line(card):
    return " ".join(card.to_text().split())


def epsilons(tree, path=()):
    """Every entry of the card whose key speaks of an epsilon, with its surroundings."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            if "epsilon" in key:
                yield (*path, key), value, tree
            yield from epsilons(value, (*path, key))


PLANS = {
    "device": small_plan(),
    "server": small_plan(privacy={"noise": "server"}),
    "fixed": small_plan(clients={"sampling": "fixed"}),
    "fixed, states kept": small_plan(
        clients={"sampling": "fixed"},
        local_training={"optimizer": "adam", "optimizer_state": "keep"},
    ),
    "no noise": small_plan(privacy={"noise_multiplier": 0}),
    "everyone": small_plan(clients={"clients_per_round": 1000}),
    "example": small_plan(privacy={"unit": "example"}, local_training={"epochs": 2}),
    "asked of devices": small_plan(
        privacy={"noise_multiplier": 20.0, "target_local_epsilon": 8.0, "delta": 1e-5}
    ),
}


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
@pytest.mark.parametrize("rounds_done", [0, 5, 20])
def test_no_epsilon_stands_without_its_terms(plan, rounds_done):
    card = card_of(plan, rounds_done=rounds_done)
    tree = json.loads(json.dumps(card.to_json(), allow_nan=False))
    found = list(epsilons(tree))
    assert len(found) >= 8
    for path, value, around in found:
        assert around["against"], path
        if (
            value is not None
            and "trusted" not in around["epsilon_text" if ("epsilon_text" in around) else "against"]
        ):
            for term in ("delta", "unit", "adjacency", "sampling"):
                assert around[term], (path, term)


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_every_epsilon_of_the_text_stands_in_a_paragraph_with_its_terms(plan):
    unit = f"unit: {plan.privacy.unit}"
    paragraphs = card_of(plan).to_text().split("\n\n")
    spoken = [p for p in paragraphs if re.search(r"\bepsilon (\d|inf)", p)]
    assert len(spoken) >= 2
    for paragraph in spoken:
        flat = " ".join(paragraph.split())
        assert flat.startswith("Against ")
        for term in ("at delta 1e-05", unit, "adjacency: ", "sampling: "):
            assert term in flat


def test_the_central_column_is_the_accountants():
    plan = small_plan()
    card = card_of(plan, rounds_done=5)
    central = card.to_json()["central"]
    for rounds, key in ((5, "epsilon"), (20, "epsilon_when_all_rounds_are_done")):
        spent = [mechanism_of_plan(plan, rounds=rounds)]
        assert central[key] == central_epsilon(spent, delta=1e-5)
    assert central["epsilon_by_rdp"] == central_epsilon(
        [mechanism_of_plan(plan, rounds=5)], delta=1e-5, accountant="rdp"
    )
    assert central["epsilon"] < central["epsilon_by_rdp"]
    assert "PLD, dp_accounting 0.6.0" in central["accountant"]
    assert central["sampling_enforced_by"] == COINS


def test_nothing_done_is_nothing_spent_and_the_plan_is_stated():
    card = card_of(small_plan(), rounds_done=0)
    central = card.to_json()["central"]
    assert central["epsilon"] == 0 and central["epsilon_when_all_rounds_are_done"] > 0.5
    assert card.spending == ()


def test_the_local_column_is_one_share_against_twice_the_clip_norm():
    plan = small_plan(privacy={"noise_multiplier": 30.0})
    local = card_of(plan).to_json()["local"]
    share = 30.0 / math.sqrt(25) / 2
    one = gaussian_epsilon(noise_multiplier=share, delta=1e-5)
    every = gaussian_epsilon(noise_multiplier=share, delta=1e-5, reports=20)
    assert local["epsilon_one_report"] == pytest.approx(one)
    assert local["epsilon_all_reports"] == pytest.approx(every)
    assert local["epsilon_one_report"] == local_epsilon(plan, reports=1)
    assert local["reports"] == 20
    assert "replace-one" in local["adjacency"] and "none" in local["sampling"]


def test_noise_on_the_server_gives_no_local_epsilon():
    card = card_of(PLANS["server"])
    local = card.to_json()["local"]
    assert local["epsilon_one_report"] is None and local["epsilon_all_reports"] is None
    assert local["epsilon_text"].startswith("none: the server is trusted")
    assert "the server is trusted" in in_one_line(card)


@pytest.mark.parametrize(
    ("name", "relation"),
    [
        ("device", "zero-out"),  # a device that stays away takes its noise along
        ("server", "add-or-remove-one"),
        ("fixed", "zero-out"),
        ("everyone", "zero-out"),
        ("example", "zero-out"),
    ],
)
def test_the_adjacency_is_the_one_that_holds(name, relation):
    assert card_of(PLANS[name]).to_json()["central"]["adjacency"].startswith(relation)


def test_infinity_is_null_beside_a_text_that_says_so():
    card = card_of(PLANS["no noise"])
    tree = json.loads(json.dumps(card.to_json(), allow_nan=False))
    assert tree["central"]["epsilon"] is None
    assert tree["central"]["epsilon_text"] == "infinite"
    assert tree["central"]["if_cohorts_are_known"]["epsilon_text"] == "infinite"
    assert tree["local"]["epsilon_one_report"] is None
    assert "infinite for one report" in tree["local"]["epsilon_text"]
    assert "epsilon infinite so far" in in_one_line(card)


def test_sampling_that_nobody_enforces_is_not_counted():
    """Pitfall 7: whoever checks in is no Poisson sample."""
    plan = small_plan()
    card = card_of(plan, enforced="not enforced: whoever checks in takes part")
    central = card.to_json()["central"]
    plain = gaussian_epsilon(noise_multiplier=1.0, delta=1e-5, reports=5)
    assert central["epsilon"] == pytest.approx(plain)
    assert central["epsilon"] > 3 * card_of(plan).central_epsilon
    assert central["sampling_is_enforced"] is False and "none is assumed" in central["sampling"]
    # Who continues from this card carries the dearer rounds on.
    assert mechanism_from_json(card.to_json()["spending"][0]).sampling_probability == 1.0


def test_not_saying_who_enforces_the_sampling_is_saying_nobody():
    card = privacy_card(small_plan(), rounds_done=5)
    assert not card.sampling_is_enforced


def test_known_cohorts_cost_the_unamplified_epsilon():
    for name in ("device", "server", "fixed"):
        known = card_of(PLANS[name]).to_json()["central"]["if_cohorts_are_known"]
        plain = gaussian_epsilon(noise_multiplier=1.0, delta=1e-5, reports=5)
        assert known["epsilon"] == pytest.approx(plain)
        assert known["adjacency"].startswith("zero-out") and "none" in known["sampling"]


def test_a_chosen_seed_voids_the_guarantee_in_words():
    told = "THE GUARANTEE IS VOID for whoever knows the seed"
    seeded = card_of(small_plan(), noise_is_reproducible=True)
    assert seeded.to_json()["noise_is_reproducible"] is True
    assert any(told in line for line in seeded.not_covered)
    assert in_one_line(seeded).count(told) == 2
    fresh = card_of(small_plan())
    assert told not in in_one_line(fresh)
    assert fresh.to_json()["noise_is_reproducible"] is False


def test_what_is_not_covered_is_said():
    covered = {name: " ".join(card_of(plan).not_covered) for name, plan in PLANS.items()}
    for name, text in covered.items():
        assert "settings" in text and "floating-point" in text
        assert ("number of reports" in text) == (name != "example")
        assert ("whole data set, which is NOT protected" in text) == (name == "example")
    assert "grows with the number of reports" in covered["device"]
    assert "grows with the number of reports" not in covered["server"]


def test_prior_spending_counts_and_is_handed_on():
    prior = (GaussianRounds(1.0, "poisson", 0.05, 10),)
    plan = small_plan()
    card = card_of(plan, prior=prior)
    assert card.central_epsilon == central_epsilon(
        [GaussianRounds(1.0, "poisson", 0.05, 15)], delta=1e-5
    )
    tree = card.to_json()
    assert [mechanism_from_json(entry) for entry in tree["spending"]] == list(card.spending)
    assert [mechanism_from_json(entry) for entry in tree["prior"]] == list(prior)
    assert "and 10 counted beside them" in in_one_line(card)
    assert any("before this plan" in line for line in card.not_covered)


def test_prior_rounds_of_another_kind_are_mentioned_and_weaken_the_adjacency():
    plan = PLANS["server"]
    card = card_of(plan, prior=(GaussianRounds(2.0, "fixed", 0.05, 3),))
    central = card.to_json()["central"]
    assert central["adjacency"].startswith("zero-out")
    assert "listed under spending" in central["sampling"]


def test_the_settings_of_the_mechanism_stand_on_the_card():
    tree = card_of(small_plan()).to_json()
    expected = {
        "version": CARD_VERSION,
        "unit": "user",
        "noise": "device",
        "clip_norm": 0.5,
        "noise_multiplier": 1.0,
        "smallest_cohort": 25,
        "rounds_done": 5,
        "rounds_planned": 20,
    }
    assert {key: tree[key] for key in expected} == expected
    text = in_one_line(card_of(small_plan()))
    for part in ("5 of 20 done", "norm 0.5", "at least 1 clip norms", "25 reports"):
        assert part in text


def test_an_uncalibrated_plan_has_no_card():
    plan = small_plan(privacy={"noise_multiplier": None, "target_epsilon": 1.0})
    with pytest.raises(PlanError, match="calibrate_plan"):
        card_of(plan)


def test_the_text_fits_a_terminal():
    for plan in PLANS.values():
        assert all(len(line) <= 100 for line in card_of(plan).to_text().splitlines())


def test_a_card_of_examples_says_what_one_example_gets_and_a_client_does_not():
    plan = PLANS["example"]
    card = card_of(plan, rounds_done=5)
    tree = card.to_json()
    assert tree["unit"] == "example" and tree["noise"] == "device"
    for column in (tree["central"], tree["central"]["if_cohorts_are_known"], tree["local"]):
        assert column["unit"].startswith("example (one example of one ")
    assert tree["central"]["epsilon"] == central_epsilon(
        [ExampleGaussianEpochs(1.0, "poisson", 0.05, 5, 2)], delta=1e-5
    )
    known = tree["central"]["if_cohorts_are_known"]["epsilon"]
    assert known == pytest.approx(gaussian_epsilon(noise_multiplier=1.0, delta=1e-5, reports=10))
    assert tree["central"]["epsilon"] <= tree["central"]["epsilon_by_rdp"] < known
    local = tree["local"]
    assert local["epsilon_one_report"] == gaussian_epsilon(
        noise_multiplier=0.5, delta=1e-5, reports=2
    )
    assert local["epsilon_all_reports"] == local_epsilon(plan, reports=20)
    assert "one example of the device is another one" in local["adjacency"]
    text = in_one_line(card)
    for part in (
        "each local step of a client clips each example's gradient to norm 0.5",
        "Gaussian noise of 1 clip norms",
        "nothing is assumed to be sampled inside a client",
        "n examples of one client are protected together at most by group privacy",
        "drawn more often than others",
    ):
        assert part in text
    assert "share" not in text and "update" not in text


def test_a_card_of_examples_does_not_go_on_from_spending_on_users():
    with pytest.raises(PlanError, match="units example and user"):
        card_of(PLANS["example"], prior=(GaussianRounds(1.0, "poisson", 0.05, 1),))


@pytest.mark.parametrize(
    ("clipping", "bound"),
    [
        ("global", "each update clipped to norm 0.5,"),
        ("per_layer", "every trainable variable to norm 0.5 over the root of their number"),
        ("value", "to +-0.5 over the root of the number of weights"),
    ],
)
@pytest.mark.parametrize("mechanism", ["gaussian", "banded"])
def test_the_card_says_how_updates_are_clipped_and_counts_all_ways_alike(
    clipping, bound, mechanism
):
    sections = {"privacy": {"clipping": clipping, "noise": "server", "mechanism": mechanism}}
    if mechanism == "banded":
        sections["clients"] = {"sampling": "min_separation"}
    card = privacy_card(small_plan(**sections), rounds_done=3)
    assert bound in " ".join(card.to_text().split())
    assert card.to_json()["clipping"] == clipping
    sections["privacy"].pop("clipping")
    plain = privacy_card(small_plan(**sections), rounds_done=3)
    assert card.central_epsilon == plain.central_epsilon
