"""The folder of one simulation run: what is in it, who holds it, what resumes it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import tensorflow as tf

from tf_dpfl.protocol.errors import PlanError, StateError
from tf_dpfl.protocol.files import append_line_durably, write_atomically
from tf_dpfl.protocol.plan import Plan
from tf_dpfl.protocol.plan_files import load_plan, plan_to_toml
from tf_dpfl.simulation.cohort import derive_bytes

RUN_VERSION = 1
PLAN_FILE = "plan.toml"

_SEED_BYTES = 32
_LOCK = ".lock"
_LEFT_OVER = re.compile(r"\.(plan\.toml|run\.json)\.[0-9a-f]+\.tmp")  # of write_atomically


@dataclass(frozen=True)
class RunFolder:
    """Paths of a run, and its secret `seed` (32 bytes).

    Who knows the seed can subtract the noise: `run.json`, `checkpoints/` and
    `optimizer_states/` are for resuming and must not be published. `reproducible`
    is true when the user chose the seed.
    """

    path: Path
    seed: bytes
    reproducible: bool

    @property
    def plan_file(self) -> Path:
        """The calibrated plan."""
        return self.path / PLAN_FILE

    @property
    def metrics_file(self) -> Path:
        """One JSON object a round."""
        return self.path / "metrics.jsonl"

    @property
    def ledger_file(self) -> Path:
        """One charged round a line."""
        return self.path / "ledger.jsonl"

    @property
    def checkpoints(self) -> Path:
        """Whole TFF states."""
        return self.path / "checkpoints"

    @property
    def optimizer_states(self) -> Path:
        """The users' own, between rounds; as private as their examples."""
        return self.path / "optimizer_states"

    @property
    def tensorboard(self) -> Path:
        """The same curves for TensorBoard."""
        return self.path / "tensorboard"

    @property
    def model_file(self) -> Path:
        """The newest released model."""
        return self.path / "model.keras"

    @property
    def initial_model_file(self) -> Path:
        """The model before the first round; a resumed run starts from its structure."""
        return self.path / "initial_model.keras"

    @property
    def card_file(self) -> Path:
        """The privacy card of the rounds done."""
        return self.path / "privacy.json"

    @property
    def report_file(self) -> Path:
        """Curves for people."""
        return self.path / "report.html"

    def read_metrics(self) -> list[dict[str, Any]]:
        """Every whole line of `metrics.jsonl`; a torn last line is left out."""
        if not self.metrics_file.exists():
            return []
        records = []
        lines = read_text(self.metrics_file).split("\n")
        for number, line in enumerate(lines, 1):
            if not line:
                continue
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                if number == len(lines):  # no line end after it: torn
                    break
                record = None
            if not isinstance(record, dict) or not isinstance(record.get("round"), int):
                raise StateError(
                    f"{self.metrics_file}:{number}: not a round's JSON object; restore the file, "
                    "or remove it: only the curves' earlier points are lost"
                )
            records.append(record)
        return records

    def keep_metrics_until(self, round_number: int) -> None:
        """Drops the lines of later rounds, which are about to be computed again."""
        kept = [r for r in self.read_metrics() if r["round"] <= round_number]
        text = "".join(json.dumps(record) + "\n" for record in kept)
        write_atomically(self.metrics_file, text.encode())

    def append_metrics(self, record: Mapping[str, Any]) -> None:
        """Adds one round's line."""
        append_line_durably(self.metrics_file, json.dumps(record))


@contextlib.contextmanager
def open_run(path: Path, plan: Plan, *, seed: int | None) -> Iterator[RunFolder]:
    """The run in `path`, made on first use, held by this process alone.

    What fails before the run has its initial model leaves nothing behind, so
    that a corrected plan can use the same folder.

    Raises:
      StateError: the folder cannot be made, holds something else, a run of
        another plan, version or seed, or another process works on it.
    """
    with held_alone(path, what="run", holds_others=_holds_other_files):
        begins = not (path / "run.json").exists()
        if begins:
            _create(path, plan, seed)
        folder = _open(path, plan, seed)
        try:
            yield folder
        finally:
            if begins and not folder.initial_model_file.exists():
                _remove_what_create_made(path)


@contextlib.contextmanager
def held_alone(path: Path, *, what: str, holds_others: Callable[[Path], bool]) -> Iterator[None]:
    """The folder `path`, made where it is missing, for this process alone inside the block.

    `what` it is the folder of; `holds_others` says of one that is there whether it is of
    something else. Raises StateError for these, a folder that cannot be made, or one
    that another process holds.
    """
    try:
        if path.exists() and holds_others(path):
            raise StateError(f"{path}: holds other files and no {what}; choose a new folder")
        path.mkdir(parents=True, exist_ok=True)
        lock = open(path / _LOCK, "w")  # noqa: SIM115
    except OSError as error:
        raise StateError(f"{path}: cannot be used as a {what}'s folder: {error.strerror}") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise StateError(f"{path}: another process is working on this {what}") from None
        yield


def _holds_other_files(path: Path) -> bool:
    """Whether there is no run, and more than a process killed in `_create` leaves."""
    return not (path / "run.json").exists() and any(
        file.name not in (_LOCK, PLAN_FILE) and not _LEFT_OVER.fullmatch(file.name)
        for file in path.iterdir()
    )


def _remove_what_create_made(path: Path) -> None:
    for name in ("run.json", PLAN_FILE, _LOCK):
        (path / name).unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # not empty: a user's own file came meanwhile
        path.rmdir()


def _create(path: Path, plan: Plan, seed: int | None) -> None:
    secret = os.urandom(_SEED_BYTES) if seed is None else derive_bytes(b"", f"seed {seed}")
    write_atomically(path / PLAN_FILE, plan_to_toml(plan).encode())
    header = {"version": RUN_VERSION, "seed": secret.hex(), "reproducible": seed is not None}
    # Last: its presence says that the folder is a run.
    write_atomically(path / "run.json", json.dumps(header).encode(), mode=0o600)


def _open(path: Path, plan: Plan, seed: int | None) -> RunFolder:
    header_file = path / "run.json"
    try:
        header = json.loads(read_text(header_file))
        version = header["version"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise StateError(f"{header_file}: not readable: {error!r}") from None
    if version != RUN_VERSION:
        raise StateError(
            f"{path}: run version {version!r} is not readable here; this release reads "
            f"version {RUN_VERSION}: finish it with the release that began it"
        )
    try:
        secret, reproducible = bytes.fromhex(header["seed"]), bool(header["reproducible"])
    except (ValueError, KeyError, TypeError) as error:
        raise StateError(f"{header_file}: not readable: {error!r}") from None
    if len(secret) != _SEED_BYTES:
        raise StateError(f"{header_file}: a seed of {len(secret)} bytes, not {_SEED_BYTES}")
    if seed is not None and secret != derive_bytes(b"", f"seed {seed}"):
        raise StateError(f"{path}: was begun with another seed than {seed}; leave --seed out")
    _check_same_plan(path, plan)
    return RunFolder(path, secret, reproducible)


def _check_same_plan(path: Path, plan: Plan) -> None:
    old, new = read_text(path / PLAN_FILE), plan_to_toml(plan)
    if old == new:
        return
    try:
        begun = load_plan(path / PLAN_FILE)
    except PlanError as error:
        raise StateError(f"a run begun with another plan: {error.faults[0]}") from None
    if begun != plan:  # keys that came later are not in an older release's file
        lines = zip_longest(plan_to_toml(begun).splitlines(), new.splitlines(), fillvalue="")
        changed = [f"{a!r} is now {b!r}" for a, b in lines if a != b]
        raise StateError(
            f"{path}: was begun with another plan ({'; '.join(changed)}); "
            "use the old plan or a new folder"
        )


def read_text(path: Path) -> str:
    """The UTF-8 text in `path`; StateError when it cannot be read."""
    try:
        return path.read_bytes().decode()
    except OSError as error:
        raise StateError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise StateError(f"{path}: damaged, not UTF-8: {error}") from None


def save_keras_atomically(model: tf.keras.Model, path: Path) -> None:
    """Writes a `.keras` file that is whole or absent after a crash."""
    temporary = path.with_name(f".{path.stem}.tmp.keras")
    model.save(temporary)
    os.replace(temporary, path)
