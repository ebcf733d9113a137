"""A run's curves for TensorBoard: event files beside `metrics.jsonl`.

An event file is a TFRecord file of `Event` messages. They are written here as
such, one a round: `tf.summary` has no way to say where a resumed run begins.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tensorflow as tf

SCALARS = ("accuracy", "loss", "central_epsilon", "users_per_second", "clip_norm")


class TensorBoardLog:
    """Appends to the curves in `folder`, from round `first_round` on.

    What an earlier process wrote of that round and later ones, which are computed
    again, is no longer shown.
    """

    def __init__(self, folder: Path, *, first_round: int):
        folder.mkdir(parents=True, exist_ok=True)
        # TensorBoard reads a folder's files in the order of their names.
        number = sum(1 for _ in folder.glob("events.out.tfevents.*"))
        path = folder / f"events.out.tfevents.{int(time.time()):010d}.{number:06d}"
        self._writer = tf.io.TFRecordWriter(str(path))
        self._write(file_version="brain.Event:2")
        start = tf.compat.v1.SessionLog(status=tf.compat.v1.SessionLog.START)
        self._write(step=first_round, session_log=start)

    def add_round(self, record: Mapping[str, Any]) -> None:
        """Adds those of a round's figures that are curves and have a value."""
        values = [
            tf.compat.v1.Summary.Value(tag=name, simple_value=record[name])
            for name in SCALARS
            if record.get(name) is not None
        ]
        self._write(step=record["round"], summary=tf.compat.v1.Summary(value=values))
        self._writer.flush()  # to the system: whoever watches sees it

    def close(self) -> None:
        """Closes the file."""
        self._writer.close()

    def _write(self, **fields: Any) -> None:
        event = tf.compat.v1.Event(wall_time=time.time(), **fields)
        self._writer.write(event.SerializeToString())
