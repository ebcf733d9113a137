"""Events of a running simulation, shown as a progress bar, plain lines or JSON lines."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from tf_dpfl.cli.interrupts import raise_if_interrupted

_SHOWN_OF_A_ROUND = (
    "accuracy",
    "clip_norm",
    "central_epsilon",
    "users_per_second",
    "seconds",
    "seconds_left",
)

Event = Mapping[str, object]
OnEvent = Callable[[Event], None]


@contextmanager
def shown_events(*, as_json: bool) -> Iterator[OnEvent]:
    """A function that shows each event it is given on standard output.

    JSON lines with `as_json`, a progress bar on a terminal, else one plain line
    for each event.
    """
    if as_json:
        yield _interruptible(_print_json)
    elif sys.stdout.isatty():
        with _progress_bar() as show:
            yield _interruptible(show)
    else:
        yield _interruptible(_print_line)


def told_in_words(on_event: OnEvent, words: Mapping[str, Callable[[Event], list[str]]]) -> OnEvent:
    """Shows events of these kinds as lines; rounds only where there is a progress bar."""

    def shown(event: Event) -> None:
        kind = str(event["event"])
        if kind in words:
            for line in words[kind](event):
                on_event({"event": "note", "text": line})
        elif kind not in ("round", "finished") or (kind == "round" and sys.stdout.isatty()):
            on_event(event)

    return shown


def _interruptible(show: OnEvent) -> OnEvent:
    def shown(event: Event) -> None:
        raise_if_interrupted()
        show(event)

    return shown


def json_line(event: Event) -> str:
    """One line of strict JSON; infinite and undefined numbers become null."""
    return json.dumps(_finite(event), allow_nan=False)


def round_text(event: Event) -> str:
    """What happened in one round, in words."""
    parts = _place(event)
    if "reports" in event:  # central training has none
        parts.append(f"{event['reports']} reports")
    if event.get("released") is False:
        parts.append("too few: nothing released")
    for key in _SHOWN_OF_A_ROUND:
        if key in event and (event[key] is not None or key == "central_epsilon"):
            parts.append(_named(key, event[key]))
    return ", ".join(parts)


def bar_text(event: Event) -> str:
    """What stands beside the bar: where a run is, how fast, and what it has come to."""
    parts = _place(event)
    for key in ("users_per_second", "accuracy", "central_epsilon"):
        if key in event and (event[key] is not None or key == "central_epsilon"):
            parts.append(_named(key, event[key]))
    return ", ".join(parts)


def _place(event: Event) -> list[str]:
    """The round, and in a search its try and fold, in a comparison its variant."""
    variant = [str(event["variant"])] if "variant" in event else []
    counted = (("try", "tries"), ("fold", "folds"), ("round", "rounds"))
    places = [f"{one} {event.get(one)}/{event.get(all_)}" for one, all_ in counted if one in event]
    return variant + places


def _named(key: str, value: object) -> str:
    """A value with its name in words; an epsilon that JSON has as null is infinite."""
    if key.endswith("epsilon") and (value is None or value == math.inf):
        shown = "infinite"
    elif isinstance(value, float):
        shown = f"{value:.4g}"
    else:
        shown = str(value)
    return f"{key.replace('_', ' ')} {shown}"


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _print_json(event: Event) -> None:
    print(json_line(event), flush=True)


def _print_line(event: Event) -> None:
    print(_text(event), flush=True)


def _text(event: Event) -> str:
    if event.get("event") == "round":
        return round_text(event)
    if event.get("event") == "note":
        return str(event.get("text"))
    details = ", ".join(_named(key, value) for key, value in event.items() if key != "event")
    return f"{event.get('event')}: {details}" if details else str(event.get("event"))


@contextmanager
def _progress_bar() -> Iterator[OnEvent]:
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (BarColumn(bar_width=20), TextColumn("{task.description}"), TimeRemainingColumn())
    with Progress(*columns) as progress:
        bar = progress.add_task("starting", total=None)
        latest: dict[str, object] = {}  # accuracy and epsilon do not come with every round

        def show(event: Event) -> None:
            if event.get("event") == "checkpoint":
                return
            if event.get("event") != "round":
                progress.console.print(_text(event), markup=False, highlight=False)
                return
            latest.update(event)
            number, rounds = event.get("round"), event.get("rounds")
            if isinstance(number, int) and isinstance(rounds, int):
                progress.update(bar, completed=number, total=rounds, description=bar_text(latest))
            if isinstance(event.get("accuracy"), float):
                progress.console.print(round_text(event), markup=False, highlight=False)

        yield show
