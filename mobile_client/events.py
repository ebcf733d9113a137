"""Events as lines: JSON for programs, words for people."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any, TextIO


def peak_rss_mb() -> float | None:
    """Largest resident memory of this process in MB (10^6 bytes); None if unknown.

    Linux only: other counters survive exec and so may count the parent.
    """
    try:
        with open("/proc/self/status", encoding="ascii") as file:
            for line in file:
                if line.startswith("VmHWM:"):
                    return round(int(line.split()[1]) * 1024 / 1e6, 1)
    except (OSError, ValueError):
        pass
    return None


class Printer:
    """Writes one line an event; `emit` is what the rest of the device is given."""

    def __init__(self, *, as_json: bool, stream: TextIO | None = None):
        self._as_json = as_json
        self._stream = stream or sys.stdout
        self._closed = False

    def emit(self, event: Mapping[str, Any]) -> None:
        """Prints one event at once; a closed stream ends the talking, not the device."""
        if self._closed:
            return
        line = json.dumps(dict(event), allow_nan=False) if self._as_json else sentence(event)
        try:
            self._stream.write(line + "\n")
            self._stream.flush()
        except (OSError, ValueError):
            self._closed = True


def sentence(event: Mapping[str, Any]) -> str:
    """One event in words."""
    kind = event.get("event")
    who = f"device {event['device']}: " if "device" in event else ""
    if kind == "task":
        return (
            f"{who}task {event['task_id']} verified: unit {event['unit']}, noise on the "
            f"{event['noise']}, multiplier {event['noise_multiplier']:g}; one report costs a "
            f"local epsilon of {_epsilon(event['local_epsilon_of_one_report'])} "
            f"(delta {event['delta']:g})"
        )
    if kind == "enrolled":
        return f"{who}enrolled as {event['device_id']}"
    if kind == "ready":
        return f"{who}client file verified ({event['client_bytes']} bytes)"
    if kind in ("trained", "charged"):
        return f"{who}round {event['round']}: {kind}"
    if kind == "report":
        why = f" ({event['reason']})" if "reason" in event else ""
        return (
            f"{who}round {event['round']}: report {event['outcome']}{why}, {event['bytes']} "
            f"bytes; local epsilon {_epsilon(event['local_epsilon'])} after "
            f"{event['reports']} report(s)"
        )
    if kind == "done":
        return (
            f"{who}the task has ended: {event['reports_sent']} report(s) sent, "
            f"{event['reports_dropped']} dropped, local epsilon "
            f"{_epsilon(event['local_epsilon'])}, {event['bytes_up']} bytes up, "
            f"{event['bytes_down']} down"
        )
    if kind == "fleet":
        return (
            f"fleet of {event['devices']}: {event['ended']} ended with the task, "
            f"{event['limited']} stopped by own limits, {event['failed']} failed; "
            f"{event['reports_sent']} reports sent, {event['reports_dropped']} dropped; "
            f"{event['bytes_up_per_device']:.0f} bytes up and "
            f"{event['bytes_down_per_device']:.0f} down per device; "
            f"largest process {event['peak_rss_mb']} MB"
        )
    if "reason" in event:
        return f"{who}{kind}: {event['reason']}"
    return who + ", ".join(f"{key} {value}" for key, value in event.items() if key != "device")


def _epsilon(value: float | None) -> str:
    return "infinity" if value is None else f"{value:.4g}"
