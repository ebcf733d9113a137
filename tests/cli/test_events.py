"""How a run's events are shown: strict JSON lines, plain lines, a bar on terminals."""

from __future__ import annotations

import json
import math

import pytest

from tf_dpfl.cli import events

ROUND = {
    "event": "round", "round": 3, "rounds": 10, "reports": 29, "released": True,
    "central_epsilon": 1.25, "accuracy": 0.5, "seconds": 0.1,
}  # fmt: skip


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_json_line_is_strict_json_for_numbers_json_has_not(value):
    line = events.json_line({"event": "round", "central_epsilon": value, "list": [value, 1.0]})
    assert "\n" not in line

    def refuse(name):
        pytest.fail(f"{name} is not JSON")

    tree = json.loads(line, parse_constant=refuse)
    assert tree == {"event": "round", "central_epsilon": None, "list": [None, 1.0]}


def test_json_events_are_one_line_each(capsys):
    with events.shown_events(as_json=True) as show:
        show({"event": "started"})
        show(ROUND)
    lines = capsys.readouterr().out.splitlines()
    assert [json.loads(line)["event"] for line in lines] == ["started", "round"]
    assert json.loads(lines[1]) == ROUND


def test_plain_events_are_one_line_each_when_not_on_a_terminal(capsys):
    with events.shown_events(as_json=False) as show:
        show({"event": "started", "folder": "run"})
        show(ROUND)
    assert capsys.readouterr().out.splitlines() == [
        "started: folder run",
        "round 3/10, 29 reports, accuracy 0.5, central epsilon 1.25, seconds 0.1",
    ]


def test_rounds_of_a_search_say_of_which_try(capsys):
    place = {"try": 2, "tries": 9, "fold": 1, "folds": 3}
    assert events.round_text({**ROUND, **place}).startswith("try 2/9, fold 1/3, round 3/10, 29 ")
    assert events.bar_text({**ROUND, **place}).startswith("try 2/9, fold 1/3, round 3/10, ")
    with events.shown_events(as_json=False) as show:
        show({"event": "note", "text": "in words: 1"})
    assert capsys.readouterr().out == "in words: 1\n"


def test_unreleased_round_says_so():
    assert "nothing released" in events.round_text({**ROUND, "released": False})
    assert "nothing released" not in events.round_text(ROUND)


@pytest.mark.parametrize("epsilon", [None, math.inf])
@pytest.mark.parametrize("event", ["round", "finished", "task written"])
def test_infinite_epsilon_is_never_left_out(event, epsilon, capsys):
    with events.shown_events(as_json=False) as show:
        show({"event": event, "round": 1, "rounds": 2, "central_epsilon": epsilon})
    assert "central epsilon infinite" in capsys.readouterr().out


def test_terminal_shows_evaluated_rounds_and_ends_cleanly(monkeypatch, capsys):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    with events.shown_events(as_json=False) as show:
        show({"event": "started"})
        show(ROUND)
        show({"event": "round", "round": 4, "rounds": 10, "reports": 0})
        show({"event": "finished", "folder": "[run]"})
    shown = capsys.readouterr().out
    assert "accuracy 0.5" in shown
    assert "[run]" in shown
