"""What a device's local optimizer goes on from: one private file for each round trained.

    optimizer_state/round_NNNNNN.bin    a line of JSON, then float32 little-endian

The state of a round is written before its report, and counts from the moment that the
report is in the outbox: a training cut off before leaves a file that nobody reads, and
the round starts again from the state before it. Older files go when a newer one counts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from pathlib import Path

import numpy as np

from tf_dpfl.protocol.errors import StateError
from tf_dpfl.protocol.files import sha256_hex, sync_folder, write_atomically
from tf_dpfl.protocol.tensors import Float32, vector_from_bytes, vector_to_bytes

OPTIMIZER_STATE_VERSION = 1

_PRIVATE = 0o600
_NAME = re.compile(r"round_(\d+)\.bin\Z")


class DeviceOptimizerStates:
    """The files of one device."""

    def __init__(self, folder: Path):
        self._folder = folder

    def newest(self, rounds: Collection[int], *, size: int) -> Float32:
        """The state after the last of `rounds`, those that have a report; float32 [size].

        Zeros, where every optimizer starts, when there is none, and when the whole folder
        was removed.

        Raises StateError when the file is missing, damaged or of another version.
        """
        if not rounds or not self._folder.exists():
            return np.zeros(size, np.float32)
        path = self._path(max(rounds))
        try:
            line, _, body = path.read_bytes().partition(b"\n")
            header = json.loads(line)
            version, digest = header["version"], header["sha256"]
        except FileNotFoundError:
            raise self._unusable(path, "is missing") from None
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise self._unusable(path, f"can not be read: {error!r}") from None
        if version != OPTIMIZER_STATE_VERSION:
            raise self._unusable(
                path,
                f"version {version!r} is not readable here; this release reads version "
                f"{OPTIMIZER_STATE_VERSION}",
            )
        if sha256_hex(body) != digest or len(body) != 4 * size:
            raise self._unusable(path, "is damaged")
        return vector_from_bytes(body, size=size)

    def save(self, round_number: int, state: Float32) -> None:
        """Writes the state after a round, before its report is written."""
        body = vector_to_bytes(state)
        header = {"version": OPTIMIZER_STATE_VERSION, "sha256": sha256_hex(body)}
        try:
            self._folder.mkdir(mode=0o700, exist_ok=True)
            content = json.dumps(header).encode() + b"\n" + body
            write_atomically(self._path(round_number), content, mode=_PRIVATE)
        except OSError as error:
            raise StateError(f"{self._path(round_number)}: can not be written: {error}") from None

    def keep_only(self, round_number: int) -> None:
        """Removes every other file; for when the report of the round is charged."""
        if not self._folder.exists():
            return
        for path in self._folder.iterdir():
            match = _NAME.match(path.name)
            if path.name.endswith(".tmp") or (match and int(match[1]) != round_number):
                path.unlink(missing_ok=True)
        sync_folder(self._folder)

    def _path(self, round_number: int) -> Path:
        return self._folder / f"round_{round_number:06d}.bin"

    def _unusable(self, path: Path, what: str) -> StateError:
        return StateError(
            f"{path}: {what}; put it back, or remove the folder {self._folder.name} for the "
            "optimizer to start anew"
        )
