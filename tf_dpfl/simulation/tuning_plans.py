"""A search as plans: what is tried, on which users, everything checked before anything runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tf_dpfl.protocol.errors import PlanError
from tf_dpfl.protocol.losses import BINARY_LOSS
from tf_dpfl.protocol.plan import LocalTraining, Plan
from tf_dpfl.protocol.plan_files import plan_with
from tf_dpfl.simulation.tuning_keys import SearchedKey, Setting, corners, grid, read_keys

GRID = "grid"
RANDOM = "random"
METHODS = (GRID, RANDOM)
PRIVATE = "private"
KINDS_OF_DATA = ("public", "synthetic", PRIVATE)

DEFAULT_MEAN_TRIES = 10.0
DEFAULT_SCORE_NOISE = 5.0
_MOST_MEAN_TRIES = 1000.0


@dataclass(frozen=True)
class Search:
    """What is tried, how, and on whose data; `search_of` makes it.

    Attributes:
      plan: what every try begins from.
      keys: what differs between tries.
      data_is: "public", "synthetic" or "private".
      method: "grid" or "random".
      folds: of the users; 0 judges every try on the plan's test split.
      mean_tries: of a random search; None for a grid.
      score_noise: standard deviation, in users, of the noise on each fold's sum of users'
        accuracies; None where scores carry no noise.
    """

    plan: Plan
    keys: tuple[SearchedKey, ...]
    data_is: str
    method: str
    folds: int
    mean_tries: float | None
    score_noise: float | None

    @property
    def is_private(self) -> bool:
        """Whether the data are of people who are to be protected."""
        return self.data_is == PRIVATE

    @property
    def keeps_tries_secret(self) -> bool:
        """Whether the price covers the best try alone, so that others stay in the folder."""
        return self.is_private and self.method == RANDOM

    def plan_of(self, setting: Setting) -> Plan:
        """The plan of one try. Raises PlanError that names the setting."""
        return plan_with(self.plan, setting, source=f"with {described(setting)}")

    def trainings(self, plan: Plan) -> tuple[Plan, ...]:
        """The plans that one try trains: `plan`, or `plan` for each fold in turn."""
        if not self.folds:
            return (plan,)
        sizes = fold_sizes(plan.clients.population, self.folds)
        return tuple(plan_without(plan, held_out=size) for size in sizes)

    def _draws(self, key: SearchedKey) -> bool:
        return self.method == RANDOM and key.ends is not None

    def to_json(self) -> dict[str, Any]:
        """Everything but the plan as plain JSON values."""
        return {
            "over": {key.name: list(key.values) for key in self.keys if not self._draws(key)},
            "ranges": {key.name: key.ends for key in self.keys if self._draws(key)},
            "data": self.data_is,
            "method": self.method,
            "folds": self.folds,
            "mean_tries": self.mean_tries,
            "score_noise": self.score_noise,
        }


def search_of(
    plan: Plan,
    over: Sequence[str],
    *,
    data_is: str,
    method: str = GRID,
    points: int | None = None,
    mean_tries: float | None = None,
    folds: int = 0,
    score_noise: float | None = None,
) -> Search:
    """A search whose every plan was checked; arguments as those of `tune`.

    Raises PlanError with all faults at once.
    """
    faults = _faults_of_options(
        plan,
        data_is=data_is,
        method=method,
        points=points,
        mean_tries=mean_tries,
        folds=folds,
        score_noise=score_noise,
    )
    try:
        keys = read_keys(over, points=points)
        settings = grid(keys) if method == GRID else corners(keys)
    except PlanError as error:
        raise PlanError([*faults, *error.faults]) from None
    if method == RANDOM and mean_tries is None:
        mean_tries = DEFAULT_MEAN_TRIES
    if folds and data_is == PRIVATE and score_noise is None:
        score_noise = DEFAULT_SCORE_NOISE
    search = Search(plan, keys, data_is, method, folds, mean_tries, score_noise)
    try:
        if not any("folds" in fault for fault in faults):
            check_settings(search, settings)
    except PlanError as error:
        faults += error.faults
    if faults:
        raise PlanError(faults)
    return search


def check_settings(search: Search, settings: Iterable[Setting]) -> None:
    """Raises PlanError with the faults of every plan that these settings would train.

    A fault that many settings share is named once, with the first of them.
    """
    found: dict[str, list[str]] = {}
    for setting in settings:
        for source, fault in _faults_of(search, setting):
            found.setdefault(fault, []).append(source)
    faults = []
    for fault, sources in found.items():
        more = f" (and {len(sources) - 1} more settings)" if len(sources) > 1 else ""
        faults.append(f"{sources[0]}{more}: {fault}")
    if faults:
        raise PlanError(faults)


def described(setting: Mapping[str, Any]) -> str:
    """A setting in words."""
    return ", ".join(f"{name}={_shown(value)}" for name, value in setting.items())


def fold_sizes(population: int, folds: int) -> tuple[int, ...]:
    """How many users each fold has: as equal as can be, larger ones first."""
    return tuple(population // folds + (i < population % folds) for i in range(folds))


def plan_without(plan: Plan, *, held_out: int) -> Plan:
    """The plan for all users but so many; cohorts shrink with them.

    The sampling probability stays, to a whole number of users. Raises PlanError.
    """
    clients, left = plan.clients, plan.clients.population - held_out
    cohort = max(1, round(clients.clients_per_round * left / clients.population))
    smallest = plan.privacy.smallest_cohort * cohort // clients.clients_per_round
    return plan_with(
        plan,
        {
            "clients.population": left,
            "clients.clients_per_round": cohort,
            "privacy.smallest_cohort": max(1, smallest),
        },
        source=f"for the {left} users that are not held out",
    )


def fault_of_judging(local: LocalTraining) -> str:
    """Why trainings with this loss cannot be judged; "" where they can."""
    if local.targets_are_class_ids or local.loss == BINARY_LOSS:
        return ""
    return (
        f"local_training.loss={local.loss!r} has no accuracy, by which trainings are judged; "
        "use a loss of class ids or binary cross-entropy"
    )


def _faults_of(search: Search, setting: Setting) -> list[tuple[str, str]]:
    """(where, what) of every fault."""
    where = f"with {described(setting)}"
    try:
        plan = search.plan_of(setting)
    except PlanError as error:
        return [(where, fault.removeprefix(f"{where}: ")) for fault in error.faults]
    judging = fault_of_judging(plan.local_training)
    faults = [judging] if judging else []
    try:
        search.trainings(plan)
    except PlanError as error:
        faults += error.faults
    return [(where, fault) for fault in faults]


def _faults_of_options(
    plan: Plan,
    *,
    data_is: str,
    method: str,
    points: int | None,
    mean_tries: float | None,
    folds: int,
    score_noise: float | None,
) -> list[str]:
    faults = []
    if data_is not in KINDS_OF_DATA:
        faults.append(f"--data {data_is!r} must be {' or '.join(KINDS_OF_DATA)}")
    if method not in METHODS:
        faults.append(f"--method {method!r} must be {' or '.join(METHODS)}")
    if method == RANDOM and points is not None:
        faults.append("--points is for --method grid; a random search draws from the whole range")
    if method != RANDOM and mean_tries is not None:
        faults.append("--mean-tries is for --method random; a grid has a number of its own")
    if mean_tries is not None and not 1 <= mean_tries <= _MOST_MEAN_TRIES:
        faults.append(f"--mean-tries {mean_tries:g} must be from 1 to {_MOST_MEAN_TRIES:g}")
    if folds != 0 and not 2 <= folds <= plan.clients.population:
        faults.append(
            f"--folds {folds} must be from 2 to clients.population={plan.clients.population}; "
            "0 judges on the plan's test split"
        )
    charged = data_is == PRIVATE and plan.tuning.is_charged
    if charged and plan.tuning.unit != plan.privacy.unit:
        faults.append(
            f"tuning.unit={plan.tuning.unit!r}: an earlier search on private data was counted for "
            f"another unit than privacy.unit={plan.privacy.unit!r}; no cost holds for both"
        )
    if score_noise is not None:
        if not (folds and data_is == PRIVATE):
            faults.append("--score-noise is for --folds with --data private; others have none")
        if not 0 < score_noise < float("inf"):
            faults.append(f"--score-noise {score_noise:g} must be finite and > 0")
    return faults


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
