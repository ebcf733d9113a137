"""What a device says: JSON for programs, words for people, silence on a closed stream."""

from __future__ import annotations

import io
import json
import math

import pytest
from device_bench import Bench

from mobile_client.events import Printer, peak_rss_mb, sentence


def test_every_event_of_a_task_has_words_and_is_json(bench: Bench) -> None:
    bench.server.faults["GET /v1/rounds/1/weights"] = lambda _: (503, b"")
    bench.run(until="retry")
    bench.server.faults.clear()
    bench.run(until="charged")
    bench.server.round = 2  # the first report comes too late
    bench.run()
    events = [{"event": p.event, **p.detail} for p in bench.events]
    assert {"task", "enrolled", "ready", "trained", "charged", "report", "retry", "done"} <= {
        event["event"] for event in events
    }
    for event in events:
        assert json.loads(json.dumps(event, allow_nan=False)) == event
        assert sentence(event).isprintable()
        assert sentence({**event, "device": 7}).startswith("device 7: ")
    report = next(event for event in events if event["event"] == "report")
    assert "dropped" in sentence(report)
    assert f"{report['local_epsilon']:.4g}" in sentence(report)


def test_an_infinite_epsilon_is_null_in_json_and_said_in_words() -> None:
    event = {"event": "done", "reports_sent": 1, "reports_dropped": 0, "local_epsilon": None}
    assert "infinity" in sentence({**event, "bytes_up": 1, "bytes_down": 1})
    with pytest.raises(ValueError, match="JSON"):
        json.dumps(math.inf, allow_nan=False)


def test_a_closed_stream_ends_the_talking_and_not_the_device() -> None:
    stream = io.StringIO()
    printer = Printer(as_json=True, stream=stream)
    printer.emit({"event": "one"})
    assert stream.getvalue() == '{"event": "one"}\n'
    stream.close()
    printer.emit({"event": "two"})
    printer.emit({"event": "three"})


def test_the_peak_of_memory_is_that_of_this_process() -> None:
    peak = peak_rss_mb()
    assert peak is not None
    assert 10 < peak < 100_000
