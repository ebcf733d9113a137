"""The keys that a search varies: read from text, laid out as a grid or drawn at random."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from random import Random
from typing import Any

from tf_dpfl.protocol.checks import Rule
from tf_dpfl.protocol.errors import PlanError
from tf_dpfl.protocol.plan import SECTIONS
from tf_dpfl.protocol.plan_files import value_of

Setting = dict[str, Any]
"""A value for each searched "section.key"."""

# Where a key without a section is looked for, in this order.
SEARCHED_SECTIONS = ("local_training", "privacy", "server", "clients")
DEFAULT_POINTS = 5
_MOST_POINTS = 100
_MOST_SETTINGS = 10_000  # each is checked as a plan before the first is tried

_ONE_BUDGET = "what the tries cost could not be compared"
_ONE_DATA_SET = "the tries would be judged on different data"
_NOT_SEARCHED = {
    "privacy.chosen_because": "it changes nothing",
    "privacy.delta": _ONE_BUDGET,
    "privacy.unit": _ONE_BUDGET,
    "clients.population": _ONE_DATA_SET,
    "clients.examples_per_client": _ONE_DATA_SET,
}
_SECTIONS_NOT_SEARCHED = {
    "data": _ONE_DATA_SET,
    "simulation": "it changes no accuracy",
    "tuning": "it changes nothing",
}


@dataclass(frozen=True)
class TriedSetting:
    """One try: its number from 1, its setting, and the validation accuracy it reached."""

    number: int
    setting: Setting
    accuracy: float


@dataclass(frozen=True)
class SearchedKey:
    """One key of the plan and the values it may take.

    Attributes:
      name: "section.key".
      values: a list as it was given; of a range, its points in a grid.
      ends: (low, high) of a range; None for a list.
      is_whole: whether values are integers.
      also_in: other sections that have the key, where no section was named.
    """

    name: str
    values: tuple[Any, ...]
    ends: tuple[float, float] | None = None
    is_whole: bool = False
    also_in: tuple[str, ...] = ()

    @property
    def extremes(self) -> tuple[Any, ...]:
        """Every value of a list, or both ends of a range."""
        return (self.values[0], self.values[-1]) if self.ends else self.values

    @property
    def is_numeric(self) -> bool:
        """Whether every value is a number."""
        return all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in self.values)

    def drawn(self, random: Random) -> Any:
        """One value: of a list, each as likely; of a range, log-uniform, or uniform from 0 on."""
        if self.ends is None:
            return random.choice(self.values)
        low, high = self.ends
        if low > 0:
            value = math.exp(random.uniform(math.log(low), math.log(high)))
        else:
            value = random.uniform(low, high)
        return _neat(min(max(value, low), high), self)

    def described(self) -> str:
        """The key and its values in words."""
        if self.ends:
            return f"{self.name} from {self.ends[0]:g} to {self.ends[1]:g}"
        return f"{self.name} in {', '.join(map(str, self.values))}"


def read_keys(over: Sequence[str], *, points: int | None = None) -> tuple[SearchedKey, ...]:
    """The keys in texts "KEY=VALUES".

    Args:
      over: KEY is "section.key", or a key alone, looked up in `SEARCHED_SECTIONS`; VALUES is
        a list "a,b,c" of values written as in TOML, or a range "a..b" of numbers.
      points: of each range in a grid, both ends among them; `DEFAULT_POINTS` if None.

    Raises PlanError with all faults at once: an unknown key, one that no search may vary,
    a value that no plan may hold, a key that comes twice.
    """
    faults: list[str] = []
    keys: list[SearchedKey] = []
    points = DEFAULT_POINTS if points is None else points
    if not 2 <= points <= _MOST_POINTS:
        faults.append(f"--points {points} must be from 2 to {_MOST_POINTS}")
        points = DEFAULT_POINTS
    for text in over:
        try:
            keys.append(_read_key(text, points))
        except PlanError as error:
            faults += error.faults
    names = [key.name for key in keys]
    faults += [f"--over: {n} comes twice" for n in sorted({n for n in names if names.count(n) > 1})]
    for target in ("privacy.target_epsilon", "privacy.target_local_epsilon"):
        if {"privacy.noise_multiplier", target} <= set(names):
            faults.append(f"--over: privacy.noise_multiplier and {target}: vary one")
    if not over:
        faults.append("--over is missing: name a key and its values, as in clip_norm=0.1..3")
    if faults:
        raise PlanError(faults)
    return tuple(keys)


def grid(keys: Sequence[SearchedKey]) -> list[Setting]:
    """Every combination of the keys' values, the last key changing fastest."""
    return _product(keys, [key.values for key in keys])


def corners(keys: Sequence[SearchedKey]) -> list[Setting]:
    """Every combination of listed values and ranges' ends."""
    return _product(keys, [key.extremes for key in keys])


def draw(keys: Sequence[SearchedKey], *, mean_tries: float, random: Random) -> list[Setting]:
    """Settings drawn independently of one another; their number is geometric, at least 1.

    This is the law with shape 1 of Papernot & Steinke (2110.03620, definition 1): the
    accounting of a random search rests on it. `mean_tries` >= 1.
    """
    settings = []
    while True:
        settings.append({key.name: key.drawn(random) for key in keys})
        if random.random() < 1 / mean_tries:
            return settings


def _product(keys: Sequence[SearchedKey], values: Sequence[Sequence[Any]]) -> list[Setting]:
    count = math.prod(map(len, values))
    if count > _MOST_SETTINGS:
        raise PlanError(
            [f"--over: {count} combinations are more than {_MOST_SETTINGS}; name fewer values"]
        )
    names = [key.name for key in keys]
    return [dict(zip(names, chosen)) for chosen in itertools.product(*values)]


def _read_key(text: str, points: int) -> SearchedKey:
    key, equals, raw = text.partition("=")
    key, raw = key.strip(), raw.strip()
    if not (equals and key and raw):
        raise PlanError([f"--over {text!r} must read KEY=VALUES, as in clip_norm=0.1..3"])
    section, name, also_in = _found(key, text)
    field = next(f for f in fields(SECTIONS[section]) if f.name == name)
    rule: Rule = field.metadata["rule"]
    is_whole = str(field.type).startswith("int")
    full = f"{section}.{name}"
    low, dots, high = raw.partition("..")
    if dots and "," not in raw:
        ends = value_of(low), value_of(high)
        _require_range(ends, field_type=str(field.type), text=text)
        key_of_range = SearchedKey(full, (), ends, is_whole, also_in)
        values = _points_of(key_of_range, points)
    else:
        ends, values = None, tuple(value_of(item) for item in raw.split(","))
    faults = [
        f"--over {text}: {full}={value!r} must be {rule.allowed}"
        for value in values
        if not rule.accepts(value)
    ]
    if not faults:
        values = tuple(rule.convert(value) for value in values)
        if len(set(values)) < len(values):
            faults = [f"--over {text}: a value comes twice"]
    if faults:
        raise PlanError(faults)
    return SearchedKey(full, values, ends, is_whole, also_in)


def _found(key: str, text: str) -> tuple[str, str, tuple[str, ...]]:
    """Section, key, and the other sections that have it, of a key as it was written."""
    named, dot, name = key.rpartition(".")
    if dot and named not in SECTIONS:
        raise PlanError([f"--over {text}: no section [{named}]; known: {', '.join(SECTIONS)}"])
    name = name or key
    places = [named] if dot else list(SEARCHED_SECTIONS)
    having = [s for s in places if name in {f.name for f in fields(SECTIONS[s])}]
    if not having:
        where = f"[{named}]" if dot else ", ".join(f"[{s}]" for s in places)
        raise PlanError([f"--over {text}: no key {name!r} in {where}; write SECTION.KEY=VALUES"])
    full = f"{having[0]}.{name}"
    why_not = _NOT_SEARCHED.get(full) or _SECTIONS_NOT_SEARCHED.get(having[0])
    if why_not:
        raise PlanError([f"--over {text}: {full} cannot be searched: {why_not}"])
    return having[0], name, tuple(having[1:])


def _require_range(ends: tuple[Any, Any], *, field_type: str, text: str) -> None:
    numbers = all(isinstance(e, (int, float)) and not isinstance(e, bool) for e in ends)
    if not field_type.startswith(("int", "float")):
        raise PlanError([f"--over {text}: a range is for numbers; list the values: a,b,c"])
    if not numbers or not -math.inf < ends[0] < ends[1] < math.inf:
        raise PlanError([f"--over {text}: a range LOW..HIGH is of two finite numbers, LOW < HIGH"])
    if field_type.startswith("int") and not all(isinstance(e, int) for e in ends):
        raise PlanError([f"--over {text}: a range of whole numbers ends in whole numbers"])


def _points_of(key: SearchedKey, points: int) -> tuple[Any, ...]:
    """Points from one end to the other: of equal ratio, or of equal distance from 0 on."""
    low, high = key.ends or (0.0, 0.0)
    shares = [i / (points - 1) for i in range(1, points - 1)]
    if low > 0:
        inner = [low * (high / low) ** share for share in shares]
    else:
        inner = [low + (high - low) * share for share in shares]
    return tuple(dict.fromkeys([low, *(_neat(v, key) for v in inner), high]))


def _neat(value: float, key: SearchedKey) -> float | int:
    """A value that is read easily; of whole numbers, a whole one."""
    return round(value) if key.is_whole else float(f"{value:.4g}")
