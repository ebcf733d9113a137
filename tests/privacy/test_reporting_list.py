"""Every item of the reporting list is on every card, where docs/privacy.md says it is."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from privacy_plans import small_plan

from tf_dpfl.privacy.card import privacy_card
from tf_dpfl.protocol.tuning_section import Tuning

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "privacy.md"

# Of the list itself (2303.00654, section 5.3), so that no row can be dropped unseen.
LIST = (
    "Setting",
    "Data accesses",
    "Output of the mechanism",
    "Unit of privacy",
    "Adjacency",
    "Type of accounting",
    "Assumptions of the accounting",
    "Whether they hold",
    "Formal statement",
    "hyperparameters were chosen",
    "Transparency",
)

PLANS = {
    "device": small_plan(),
    "server": small_plan(privacy={"noise": "server"}),
    "banded": small_plan(
        clients={"sampling": "min_separation"}, privacy={"noise": "server", "mechanism": "banded"}
    ),
    "example": small_plan(privacy={"unit": "example"}),
    "adaptive": small_plan(privacy={"adaptive_clipping": True}),
    "local": small_plan(privacy={"noise_multiplier": 20.0, "target_local_epsilon": 8.0}),
    "tuned": replace(
        small_plan(),
        tuning=Tuning(data="public", method="grid", over="privacy.clip_norm in 1, 2", tries=2),
    ),
}


def rows():
    """(item, keys, words of the text) of each row of the document's table."""
    text = DOCUMENT.read_text().split("## What the card reports")[1].split("\n## ")[0]
    for line in text.splitlines():
        if line.startswith("|") and "`" in line and not line.startswith("| Item"):
            item, keys, words = (cell.strip() for cell in line.strip("|").split("|"))
            yield item, re.findall(r"`([^`]+)`", keys), re.findall(r"`([^`]+)`", words)


def at(tree, path):
    for key in path.split("."):
        tree = tree[key]  # KeyError: the card has no such entry
    return tree


def test_the_document_has_every_item_of_the_list():
    items = [item for item, _, _ in rows()]
    for wanted in LIST:
        assert sum(wanted in item for item in items) == 1, wanted


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_every_item_is_on_the_card_in_json_and_in_words(plan):
    card = privacy_card(plan, rounds_done=3, sampling_enforced_by="this test")
    tree, text = json.loads(json.dumps(card.to_json())), " ".join(card.to_text().split())
    for item, keys, words in rows():
        assert keys and words, item
        for key in keys:
            at(tree, key)
        said = [at(tree, key) for key in keys]
        assert any(value not in (None, "", []) for value in said), item
        for word in words:
            assert word in text, (item, word)


def test_setting_and_trust_are_those_of_the_noises_place():
    settings = {
        name: privacy_card(PLANS[name], rounds_done=0).to_json()
        for name in ("device", "server", "example")
    }
    assert settings["device"]["setting"].startswith("distributed")
    assert settings["server"]["setting"].startswith("central, with a trusted server")
    assert "each device noises its own" in settings["example"]["setting"]
    assert "sees each update without noise" in settings["server"]["trust"]
    assert "nobody but one's own device" in settings["device"]["trust"]


def test_what_was_counted_follows_rounds_and_spending():
    card = privacy_card(small_plan(), rounds_done=3)
    assert "in the 20 rounds of this training; trying" in card.to_json()["data_accesses_covered"]
    more = privacy_card(small_plan(), rounds_done=3, prior=card.spending)
    assert "and 3 rounds before or beside it" in more.to_json()["data_accesses_covered"]
    who = card.to_json()["participants"]
    assert "50 of 1000 clients a round (poisson" in who and "at most 20 examples" in who
