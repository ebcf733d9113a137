"""What the server says while it runs: lines for a person, or JSON lines for a program."""

from __future__ import annotations

import json
import sys
from typing import Any, TextIO

_SENTENCES = {
    "listening": "listening on {url} (task {task_id})",
    "tokens": "{count} enrolment tokens in {file}",
    "waiting": "waiting: {enrolled} of {needed} devices are enrolled",
    "round_opened": "round {round_number} open: {invited} devices invited",
    "aborted": "round {round_number} aborted, nothing released: {reason}",
    "done": "done: {reason}",
    "stopped": "stopped: the same command goes on from here",
}


class Reporter:
    """Writes events to `stream`; a closed stream ends the talking, not the server."""

    def __init__(self, *, as_json: bool, stream: TextIO | None = None):
        self._as_json = as_json
        self._stream = stream or sys.stdout
        self._closed = False

    def emit(self, event: str, **fields: Any) -> None:
        """Writes one event; `fields` are plain JSON values."""
        if self._closed:
            return
        if self._as_json:
            line = json.dumps({"event": event, **fields}, allow_nan=False)
        else:
            line = sentence(event, fields)
        try:
            self._stream.write(line + "\n")
            self._stream.flush()
        except (OSError, ValueError):
            self._closed = True


def sentence(event: str, fields: dict[str, Any]) -> str:
    """The event as one line for a person."""
    if event != "round":
        return _SENTENCES[event].format(**fields)
    epsilon = fields["central_epsilon"]
    spent = "unbounded" if epsilon is None else f"{epsilon:.3g}"
    accuracy = fields["accuracy"]
    score = "" if accuracy is None else f", accuracy {100 * accuracy:.1f} %"
    clipped = f", clip norm {fields['clip_norm']:.3g}" if "clip_norm" in fields else ""
    return (
        f"round {fields['round']} released: {fields['reports']} reports{score}{clipped}, "
        f"central epsilon {spent} at delta {fields['delta']:g} per {fields['unit']}"
    )
