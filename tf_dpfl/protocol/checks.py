"""Checks of single values; written so that NaN fails every one of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

REQUIRED = object()

# Integers a float64 and every JSON reader hold exactly.
LARGEST_INTEGER = 2**53


@dataclass(frozen=True)
class Rule:
    """What one value may be: `allowed` in words, `accepts` as a predicate."""

    allowed: str
    accepts: Callable[[Any], bool]
    convert: Callable[[Any], Any] = lambda value: value


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    # A huge integer has no float: comparing it would raise OverflowError.
    return isinstance(value, float) or (_is_integer(value) and abs(value) <= LARGEST_INTEGER)


def _is_integer_in_range(value: Any, at_least: int, at_most: int = LARGEST_INTEGER) -> bool:
    return _is_integer(value) and at_least <= value <= at_most


def _field(rule: Rule, default: Any) -> Any:
    if default is REQUIRED:
        return field(metadata={"rule": rule})
    return field(default=default, metadata={"rule": rule})


def integer(
    *,
    at_least: int,
    at_most: int = LARGEST_INTEGER,
    optional: bool = False,
    default: Any = REQUIRED,
) -> Any:
    """A dataclass field for an integer from `at_least` to `at_most`."""
    return _field(
        Rule(
            f"an integer >= {at_least} and <= {at_most}",
            lambda v: (optional and v is None) or _is_integer_in_range(v, at_least, at_most),
        ),
        default,
    )


def number(
    *,
    above: float | None = None,
    at_least: float | None = None,
    below: float = math.inf,
    optional: bool = False,
    default: Any = REQUIRED,
) -> Any:
    """A dataclass field for a finite real number in the given range."""
    if above is not None:
        bound = f"> {above:g}"
    elif at_least is not None:
        bound = f">= {at_least:g}"
    else:
        bound = ""
    parts = [part for part in (bound, f"< {below:g}" if below < math.inf else "") if part]
    allowed = "a finite number" + (" " + " and ".join(parts) if parts else "")

    def accepts(value: Any) -> bool:
        if optional and value is None:
            return True
        if not _is_number(value) or not math.isfinite(value):
            return False
        low = value > above if above is not None else at_least is None or value >= at_least
        return bool(low and value < below)

    def convert(value: Any) -> Any:
        return None if value is None else float(value)

    return _field(Rule(allowed, accepts, convert), default)


def choice(*options: str, default: Any = REQUIRED) -> Any:
    """A dataclass field for one of the given words."""
    words = " or ".join(f'"{option}"' for option in options)
    return _field(Rule(words, lambda v: isinstance(v, str) and v in options), default)


def text(*, default: Any = REQUIRED) -> Any:
    """A dataclass field for a string; a required one may not be empty."""
    may_be_empty = default == ""
    allowed = "a string" if may_be_empty else "a non-empty string"
    return _field(Rule(allowed, lambda v: is_text(v) and (may_be_empty or v != "")), default)


def is_text(value: Any) -> bool:
    """Whether `value` is a string that UTF-8 can carry (no lone surrogates)."""
    return isinstance(value, str) and value.encode(errors="ignore").decode() == value


def flag(*, default: Any = REQUIRED) -> Any:
    """A dataclass field for true or false."""
    return _field(Rule("true or false", lambda v: isinstance(v, bool)), default)


def integers(*, at_least: int, default: Any = REQUIRED) -> Any:
    """A dataclass field for a list of integers >= `at_least`, kept as a tuple."""
    return _field(
        Rule(
            f"a list of integers >= {at_least}",
            lambda v: (
                isinstance(v, (list, tuple))
                and all(_is_integer_in_range(item, at_least) for item in v)
            ),
            tuple,
        ),
        default,
    )


def require_finite_positive(name: str, value: float) -> float:
    """Returns `value` as a float; raises ValueError unless it is finite and > 0."""
    if not (value > 0 and math.isfinite(value)):
        raise ValueError(f"{name}={value!r} must be finite and > 0")
    return float(value)


def require_finite_nonnegative(name: str, value: float) -> float:
    """Returns `value` as a float; raises ValueError unless it is finite and >= 0."""
    if not (value >= 0 and math.isfinite(value)):
        raise ValueError(f"{name}={value!r} must be finite and >= 0")
    return float(value)


def finite_or_none(value: float) -> float | None:
    """A number for JSON, which has no infinity: None stands for it."""
    return value if math.isfinite(value) else None
