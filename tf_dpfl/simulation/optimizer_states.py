"""What each user's local optimizer goes on from, kept between the rounds of a run.

New states wait in memory and reach the disk with a checkpoint, which also holds where
each user's newest one lies: a resumed run cannot see states of rounds that it repeats.
"""

from __future__ import annotations

import io
import re
import zlib
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tf_dpfl.protocol.errors import StateError
from tf_dpfl.protocol.files import write_atomically
from tf_dpfl.protocol.tensors import Float32

STATES_VERSION = 1

_NONE = 0  # rounds count from 1
_NAME = re.compile(r"round_(\d{6,})\.v(\d+)\.npy\Z")


class OptimizerStates:
    """The states of all users of one run.

    Args:
      folder: of this run alone; made on the first `save`.
      population: number of users.
      size: float32 values of one user's state.
      places: `places` as it was at the checkpoint to go on from; None for a new run.

    On disk they take at most twice population * size * 4 bytes, and what the checkpoint
    before the newest one still needs; in memory those since the last checkpoint.
    """

    def __init__(
        self,
        folder: Path,
        *,
        population: int,
        size: int,
        places: Mapping[str, NDArray[np.int32]] | None = None,
    ):
        self._folder = folder
        self._size = size
        nobody = np.full(population, _NONE, np.int32)
        self._rounds = nobody if places is None else places["round"].copy()
        self._rows = nobody.copy() if places is None else places["row"].copy()
        self._fresh: dict[int, Float32] = {}
        self._row_type = np.dtype([("user", "<i8"), ("crc", "<u4"), ("state", "<f4", (size,))])

    @property
    def places(self) -> OrderedDict[str, NDArray[np.int32]]:
        """Where each user's saved state lies, int32 [population] each; round 0: nowhere."""
        return OrderedDict(round=self._rounds.copy(), row=self._rows.copy())

    def of(self, user_ids: NDArray[np.int64]) -> Float32:
        """The users' states, float32 [k, size]; zeros, where all optimizers start, for new ones.

        Raises StateError when a file is missing, damaged or another run's.
        """
        states = np.zeros((len(user_ids), self._size), np.float32)
        saved_in = self._rounds[user_ids]
        for number in np.unique(saved_in[saved_in != _NONE]).tolist():
            places = np.flatnonzero(saved_in == number)
            states[places] = self._read(number, user_ids[places])
        for place, user in enumerate(user_ids.tolist()):
            if user in self._fresh:
                states[place] = self._fresh[user]
        return states

    def put(self, user_ids: NDArray[np.int64], states: Float32) -> None:
        """Takes the users' states after a round, float32 [k, size]."""
        self._fresh.update(zip(user_ids.tolist(), np.array(states, np.float32)))

    def save(self, round_number: int) -> None:
        """Writes what came since the last time; call it right before a checkpoint.

        Files that neither it nor the checkpoint before it need are removed.
        """
        before = set(self._rounds.tolist())
        self._take_from_sparse_files()
        if self._fresh:
            users = np.sort(np.fromiter(self._fresh, np.int64, len(self._fresh)))
            rows = np.zeros(len(users), self._row_type)
            rows["user"] = users
            for row, user in zip(rows, users.tolist()):
                row["state"] = self._fresh[user]
                row["crc"] = zlib.crc32(row["state"].tobytes())
            content = io.BytesIO()
            np.save(content, rows)
            self._folder.mkdir(mode=0o700, exist_ok=True)
            write_atomically(self._path(round_number), content.getvalue(), mode=0o600)
            self._rounds[users], self._rows[users] = round_number, np.arange(len(users))
            self._fresh.clear()
        self._remove_all_but(before | set(self._rounds.tolist()))

    def _take_from_sparse_files(self) -> None:
        """Moves the states on of files that hold more old ones than newest ones."""
        stale = np.fromiter(self._fresh, np.int64, len(self._fresh))
        newest = self._rounds.copy()
        newest[stale] = _NONE
        for number in np.unique(newest[newest != _NONE]).tolist():
            users = np.flatnonzero(newest == number)
            if 2 * len(users) < len(self._open(number)):
                self.put(users, self._read(number, users))

    def _remove_all_but(self, rounds: set[int]) -> None:
        for path in self._folder.iterdir() if self._folder.is_dir() else ():
            match = _NAME.match(path.name)
            if match and int(match[2]) == STATES_VERSION and int(match[1]) not in rounds:
                path.unlink()

    def _path(self, round_number: int) -> Path:
        return self._folder / f"round_{round_number:06d}.v{STATES_VERSION}.npy"

    def _open(self, round_number: int) -> NDArray[np.void]:
        path = self._path(round_number)
        try:
            rows: NDArray[np.void] = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise _unusable(path, f"is missing or damaged ({error})") from None
        if rows.dtype != self._row_type or rows.ndim != 1:
            raise _unusable(path, "holds states of another model or optimizer")
        return rows

    def _read(self, round_number: int, user_ids: NDArray[np.int64]) -> Float32:
        """States of users that were saved in that round, float32 [k, size]."""
        rows, path = self._open(round_number), self._path(round_number)
        places = self._rows[user_ids]
        if not np.all(places < len(rows)):
            raise _unusable(path, "is shorter than it was")
        found = np.array(rows[places])
        whole = [zlib.crc32(row["state"].tobytes()) == row["crc"] for row in found]
        if not (all(whole) and np.array_equal(found["user"], user_ids)):
            raise _unusable(path, "is damaged: a check sum or a user does not fit")
        states: Float32 = found["state"]
        return states


def _unusable(path: Path, what: str) -> StateError:
    return StateError(
        f"{path}: {what}; put it back, or begin again in a new folder: without the users' "
        "optimizer states the run cannot go on as it was"
    )
