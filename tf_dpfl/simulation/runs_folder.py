"""A folder of several runs: what they are runs of, their common secret, who holds it.

Searches and comparisons are such folders. A header says what was begun; only the same
thing goes on in it.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from tf_dpfl.protocol.errors import StateError
from tf_dpfl.protocol.files import write_atomically
from tf_dpfl.simulation.cohort import derive_bytes
from tf_dpfl.simulation.run_folder import held_alone, read_text

OWNER_ALONE = 0o600

_SECRET_BYTES = 32


@dataclass(frozen=True)
class FolderKind:
    """What is in a folder of several runs: `what` it is of, in words, and the names in it."""

    what: str
    header: str
    runs: str
    version: int


@dataclass(frozen=True)
class RunsFolder:
    """Its path, and what was drawn for it once and for all.

    Attributes:
      secret: 32 bytes; with a seed, everything random comes from them.
      is_seeded: whether somebody chose the seed.
    """

    path: Path
    secret: bytes
    is_seeded: bool

    def random(self, purpose: str) -> Random:
        """Randomness that is the same whenever the folder is opened again."""
        return random_of(self.secret, purpose)

    def seed_of(self, purpose: str) -> int | None:
        """The seed of one run; None leaves it to the operating system."""
        if not self.is_seeded:
            return None
        return int.from_bytes(derive_bytes(self.secret, purpose)[:6], "little")

    def random_bytes(self, purpose: str) -> Callable[[int], bytes]:
        """The source of noise: the operating system, or the secret where it is seeded."""
        if not self.is_seeded:
            return os.urandom
        return lambda count: derive_bytes(self.secret, purpose)[:count]


def random_of(secret: bytes, purpose: str) -> Random:
    """Python's generator, started from a secret."""
    return Random(int.from_bytes(derive_bytes(secret, purpose), "little"))


@contextlib.contextmanager
def open_runs_folder(
    path: Path,
    kind: FolderKind,
    *,
    identity: Mapping[str, Any],
    seed: int | None,
    drawn: Callable[[bytes], Mapping[str, Any]] = lambda secret: {},
    mode: int = 0o755,
) -> Iterator[tuple[RunsFolder, Mapping[str, Any]]]:
    """The folder, begun on first use, held by this process alone; and its header.

    Args:
      identity: plain JSON values that must be the same for it to go on.
      seed: None draws the secret from the operating system.
      drawn: from the secret, more values of a new header.
      mode: of the folder of runs.

    Raises:
      StateError: the folder cannot be made, holds something else, what was begun with
        another identity, seed or version, or another process works on it.
      what `drawn` raises; nothing is left behind then.
    """
    file = path / kind.header
    with held_alone(path, what=kind.what, holds_others=lambda found: _holds_others(found, kind)):
        if not file.exists():
            secret = os.urandom(_SECRET_BYTES) if seed is None else _secret_of(seed, kind)
            header = {"version": kind.version, **identity, "is_seeded": seed is not None}
            try:
                header |= {"secret": secret.hex(), **drawn(secret)}
            except BaseException:
                with contextlib.suppress(OSError):
                    (path / ".lock").unlink()
                    path.rmdir()
                raise
            (path / kind.runs).mkdir(mode=mode, exist_ok=True)
            write_atomically(file, (json.dumps(header, indent=1) + "\n").encode(), mode=OWNER_ALONE)
        header = _read(path, kind, identity)
        try:
            folder = RunsFolder(path, bytes.fromhex(header["secret"]), bool(header["is_seeded"]))
        except (ValueError, KeyError, TypeError) as error:
            raise unreadable_header(file, error) from None
        if seed is not None and folder.secret != _secret_of(seed, kind):
            raise StateError(f"{path}: was begun with another seed than {seed}; leave --seed out")
        yield folder, header


def unreadable_header(file: Path, error: Exception) -> StateError:
    """The error that says so, and what to do."""
    return StateError(f"{file}: not readable: {error!r:.200}; restore it, or choose a new folder")


def _read(path: Path, kind: FolderKind, identity: Mapping[str, Any]) -> dict[str, Any]:
    file = path / kind.header
    try:
        header: dict[str, Any] = json.loads(read_text(file))
        version = header["version"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise unreadable_header(file, error) from None
    if version != kind.version:
        raise StateError(
            f"{path}: {kind.what} version {version!r:.80} is not readable here; this release "
            f"reads version {kind.version}: finish it with the release that began it"
        )
    wanted = json.loads(json.dumps(identity))
    changed = [name for name, value in wanted.items() if header.get(name) != value]
    if changed:
        raise StateError(
            f"{path}: was begun with another {' and another '.join(changed)}; repeat its "
            "command, or choose a new folder"
        )
    return header


def _holds_others(path: Path, kind: FolderKind) -> bool:
    return not (path / kind.header).exists() and any(
        file.name not in (".lock", kind.runs) and not file.name.startswith(f".{kind.header}.")
        for file in path.iterdir()
    )


def _secret_of(seed: int, kind: FolderKind) -> bytes:
    return derive_bytes(b"", f"{kind.what} {seed}")
