"""A privacy card in one line: both columns with the terms of their epsilons."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def in_one_line(card: Mapping[str, Any]) -> str:
    """What a card (as `PrivacyCard.to_json` gives it) guarantees when all rounds are done.

    Each epsilon stands with whom it is against, delta, unit, neighbouring relation and
    sampling; these terms are named by their first words, which the card explains.
    """
    central, local = card["central"], card["local"]
    text = (
        f"against {central['against']}: epsilon {central['epsilon_when_all_rounds_are_done_text']} "
        f"at delta {central['delta']:g} for one {_unit(central)} ({_name(central['adjacency'])}; "
        f"{_name(central['sampling'])} sampling). Against {local['against']}: "
        f"{local['epsilon_text']}"
    )
    if "adjacency" in local:
        text += (
            f" at delta {local['delta']:g} for one {_unit(local)} ({_name(local['adjacency'])}; no "
            "sampling)"
        )
    if card["noise_is_reproducible"]:
        text += ". All of it is void for whoever knows the seed"
    return text


def _name(term: str) -> str:
    return term.partition(":")[0]


def _unit(column: Mapping[str, Any]) -> str:
    return str(column["unit"]).partition(" (")[0]
