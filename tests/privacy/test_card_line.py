"""A card in one line: no epsilon without whom it is against and what it rests on."""

import pytest
from privacy_plans import small_plan

from tf_dpfl.privacy.card import privacy_card
from tf_dpfl.privacy.card_line import in_one_line

PLANS = {
    "device": (small_plan(), "user", "zero-out", "Poisson"),
    "server": (small_plan(privacy={"noise": "server"}), "user", "add-or-remove-one", "Poisson"),
    "banded": (
        small_plan(
            clients={"sampling": "min_separation"},
            privacy={"noise": "server", "mechanism": "banded"},
        ),
        *("user", "zero-out", "minimum separation"),
    ),
    "example": (small_plan(privacy={"unit": "example"}), "example", "zero-out", "Poisson"),
}


@pytest.mark.parametrize(("plan", "unit", "adjacency", "sampling"), PLANS.values(), ids=PLANS)
def test_every_epsilon_stands_with_its_terms(plan, unit, adjacency, sampling):
    card = privacy_card(plan, rounds_done=3, sampling_enforced_by="this test")
    line = in_one_line(card.to_json())
    central, _, local = line.partition(". Against ")
    assert "\n" not in line
    assert central == (
        "against whoever sees the released models, all of them: epsilon "
        f"{card.central_epsilon_planned:.4g} at delta 1e-05 for one {unit} ({adjacency}; "
        f"{sampling} sampling)"
    )
    if plan.privacy.noise == "server":
        assert local == "the server: none: the server is trusted, it sees clipped updates bare"
        return
    for epsilon in (card.local_epsilon_one_report, card.local_epsilon_all_reports):
        assert f"{epsilon:.4g}" in local
    assert local.endswith(f"at delta 1e-05 for one {unit} (replace-one; no sampling)")


def test_a_plan_without_noise_has_an_infinite_epsilon():
    card = privacy_card(small_plan(privacy={"noise_multiplier": 0.0}), rounds_done=3)
    assert "epsilon infinite at delta" in in_one_line(card.to_json())


def test_a_seeded_run_says_that_its_numbers_are_void():
    for seeded in (False, True):
        card = privacy_card(small_plan(), rounds_done=3, noise_is_reproducible=seeded)
        said = "void for whoever knows the seed" in in_one_line(card.to_json())
        assert said is seeded
