"""The plan's section [tuning]: how its settings were chosen, for the privacy card."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from tf_dpfl.protocol.checks import choice, flag, integer, number, text

_OF_NOBODY = ("public", "synthetic")


@dataclass(frozen=True)
class Tuning:
    """How the settings were chosen: said by the plan's author, or written by `dpfl tune`.

    `how` is the author's own words, `data` whose data the choice was made on. All the rest is
    written by `dpfl tune` (and changes no training): `how_data` is whose data `how` is about,
    `data` then being those of the search; `method`, what it went `over`, how many
    `tries` (of a random search on private data only `mean_tries`: the number is a secret that
    its price rests on), `folds` of users, and `earlier` searches in words.

    Searches on private data, all that led to this plan together, cost `epsilon` at `delta`,
    for the `unit`, under `adjacency`, with this `sampling` and by this `accountant`; left out,
    epsilon is infinite. `epsilon_with_training` is that with one training after them, whose
    releases have the digest `trained`. With `seeded` somebody chose the seed of a search.
    """

    how: str = text(default="")
    data: str = choice("unstated", "public", "synthetic", "private", default="unstated")
    how_data: str = choice("unstated", "public", "synthetic", "private", default="unstated")
    method: str = choice("none", "grid", "random", default="none")
    over: str = text(default="")
    tries: int | None = integer(at_least=1, optional=True, default=None)
    mean_tries: float | None = number(at_least=1, optional=True, default=None)
    folds: int = integer(at_least=0, default=0)
    earlier: str = text(default="")
    seeded: bool = flag(default=False)
    unit: str = choice("user", "example", default="user")
    delta: float | None = number(above=0, below=1, optional=True, default=None)
    epsilon: float | None = number(at_least=0, optional=True, default=None)
    adjacency: str = choice("", "add-or-remove-one", "zero-out", default="")
    sampling: str = text(default="")
    accountant: str = text(default="")
    epsilon_with_training: float | None = number(at_least=0, optional=True, default=None)
    trained: str = text(default="")

    @property
    def by_search(self) -> bool:
        """Whether `dpfl tune` chose the settings."""
        return self.method != "none"

    @property
    def is_charged(self) -> bool:
        """Whether a search on private data led to the plan, at a price that is known."""
        return self.delta is not None

    @property
    def needs_no_cost(self) -> bool:
        """Whether nobody who is to be protected is in the data of the last choice."""
        return self.data in _OF_NOBODY

    @property
    def says_how_for_nothing(self) -> bool:
        """Whether the author's own words are of data of nobody who is to be protected."""
        return (self.how_data if self.by_search else self.data) in _OF_NOBODY


UNSTATED = Tuning()
"""Nothing is said of how the settings were chosen."""


def faults_of_tuning(plan: Any) -> Iterable[str]:
    """Entries of [tuning] that go together only as `dpfl tune` writes them.

    `plan` is a Plan, or whatever holds as much of one as could be read.
    """
    tuning = plan.tuning
    if tuning.method == "none":
        written = (tuning.tries, tuning.mean_tries, tuning.delta, tuning.epsilon)
        if any(value is not None for value in written):
            return [
                "tuning: a cost and a number of tries are written by dpfl tune, with "
                "tuning.method; say how the settings were chosen in tuning.how and tuning.data"
            ]
        if tuning.how_data != "unstated":
            return [
                "tuning.how_data is written by dpfl tune; whose data it was goes to tuning.data"
            ]
        if tuning.data != "unstated" and not tuning.how:
            return [
                f'tuning.data="{tuning.data}" needs tuning.how: how the settings were chosen on '
                "these data, in words; or leave both out"
            ]
        return []
    name = f'tuning.method="{tuning.method}"'
    if tuning.data == "unstated":
        return [f"{name} needs tuning.data: whose data the search ran on"]
    if (tuning.tries if tuning.method == "grid" else tuning.mean_tries) is None:
        key = "tries" if tuning.method == "grid" else "mean_tries"
        return [f"{name} needs tuning.{key}, as dpfl tune writes it"]
    is_charged = tuning.delta is not None
    priced = is_charged and tuning.adjacency and tuning.sampling and tuning.accountant
    if (tuning.data == "private" or is_charged) and not priced:
        return [
            f"{name} on private data needs tuning.delta, adjacency, sampling and accountant: no "
            "cost is stated without them; take the section as dpfl tune wrote it"
        ]
    return []
