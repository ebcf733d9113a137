"""The folder of a search: what it is, what was drawn, which tries have ended."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random, SystemRandom
from typing import Any

from tf_dpfl.protocol.errors import StateError
from tf_dpfl.protocol.files import append_line_durably, drop_torn_line, write_atomically
from tf_dpfl.protocol.plan_files import plan_to_toml
from tf_dpfl.simulation.cohort import derive_bytes
from tf_dpfl.simulation.run_folder import held_alone, read_text
from tf_dpfl.simulation.tuning_keys import Setting, draw, grid
from tf_dpfl.simulation.tuning_plans import GRID, Search, check_settings

SEARCH_VERSION = 1
OWNER_ALONE = 0o600

_HEADER = "search.json"
_SECRET_BYTES = 32


@dataclass(frozen=True)
class SearchFolder:
    """Paths of a search, and what was drawn for it once and for all.

    Attributes:
      settings: one for each try, in their order.
      secret: 32 bytes that folds come from, and with a seed everything else.
      is_seeded: whether somebody chose the seed.
    """

    path: Path
    settings: tuple[Setting, ...]
    secret: bytes
    is_seeded: bool

    @property
    def best_plan_file(self) -> Path:
        """The plan with the best setting."""
        return self.path / "best.toml"

    @property
    def result_file(self) -> Path:
        """The table and the cost as JSON."""
        return self.path / "tune.json"

    @property
    def report_file(self) -> Path:
        """The same for people."""
        return self.path / "report.html"

    @property
    def _scores_file(self) -> Path:
        return self._tries / "scores.jsonl"

    @property
    def _tries(self) -> Path:
        return self.path / "tries"

    def run_of(self, number: int, fold: int) -> Path:
        """The RUN folder of a try (from 1), and of its fold (from 1; 0 without folds)."""
        run = self._tries / f"{number:04d}"
        return run / f"fold-{fold}" if fold else run

    def random(self, purpose: str) -> Random:
        """Randomness that is the same whenever the search goes on."""
        return _random(self.secret, purpose)

    def run_seed(self, number: int, fold: int) -> int | None:
        """The seed of a try's run; None leaves it to the operating system."""
        if not self.is_seeded:
            return None
        return int.from_bytes(derive_bytes(self.secret, f"run {number} {fold}")[:6], "little")

    def random_bytes(self, purpose: str) -> Callable[[int], bytes]:
        """The source of noise: the operating system, or a seeded search's secret."""
        if not self.is_seeded:
            return os.urandom
        return lambda count: derive_bytes(self.secret, purpose)[:count]

    def scores(self) -> dict[tuple[int, int], float]:
        """The score of every run that has ended, by try and fold.

        Raises StateError when the file is damaged.
        """
        file = self._scores_file
        if not file.exists():
            return {}
        drop_torn_line(file)
        scores = {}
        for number, line in enumerate(read_text(file).splitlines(), 1):
            try:
                entry = json.loads(line)
                scores[int(entry["try"]), int(entry["fold"])] = float(entry["score"])
            except (ValueError, KeyError, TypeError, RecursionError):
                raise StateError(
                    f"{file}:{number}: not the score of a try; restore the file, or remove it: "
                    "tries are scored again (on private data each such score is one more release)"
                ) from None
        return scores

    def keep_score(self, number: int, fold: int, score: float) -> None:
        """Adds the score of a run; durable when this returns."""
        line = json.dumps({"try": number, "fold": fold, "score": score}, allow_nan=False)
        append_line_durably(self._scores_file, line)


@contextlib.contextmanager
def open_search(path: Path, search: Search, *, seed: int | None) -> Iterator[SearchFolder]:
    """The search in `path`, begun on first use, held by this process alone.

    What a random search tries, and how often, is drawn when it begins and never again.

    Raises:
      PlanError: a setting that was drawn makes no plan; nothing is left behind.
      StateError: the folder cannot be made, holds something else, another search or
        version, or another process works on it.
    """
    with held_alone(path, what="search", holds_others=_holds_other_files):
        if not (path / _HEADER).exists():
            try:
                header = _begun(search, seed)
            except BaseException:
                with contextlib.suppress(OSError):
                    (path / ".lock").unlink()
                    path.rmdir()
                raise
            (path / "tries").mkdir(
                mode=0o700 if search.keeps_tries_secret else 0o755, exist_ok=True
            )
            text = json.dumps(header, indent=1) + "\n"
            write_atomically(path / _HEADER, text.encode(), mode=OWNER_ALONE)
        yield _open(path, search, seed)


def _holds_other_files(path: Path) -> bool:
    return not (path / _HEADER).exists() and any(
        file.name not in (".lock", "tries") and not file.name.startswith(f".{_HEADER}.")
        for file in path.iterdir()
    )


def _begun(search: Search, seed: int | None) -> dict[str, Any]:
    """The header of a new search."""
    secret = os.urandom(_SECRET_BYTES) if seed is None else _secret_of(seed)
    if search.method == GRID:
        settings = grid(search.keys)
    else:
        random = SystemRandom() if seed is None else _random(secret, "settings")
        settings = draw(search.keys, mean_tries=search.mean_tries or 1.0, random=random)
        check_settings(search, settings)
    return {
        "version": SEARCH_VERSION,
        **_identity(search),
        "is_seeded": seed is not None,
        "secret": secret.hex(),
        "settings": settings,
    }


def _identity(search: Search) -> dict[str, Any]:
    """What must be the same for a search to go on."""
    return {**search.to_json(), "plan": plan_to_toml(search.plan)}


def _open(path: Path, search: Search, seed: int | None) -> SearchFolder:
    file = path / _HEADER
    try:
        header = json.loads(read_text(file))
        version = header["version"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise StateError(f"{file}: not readable: {error!r:.200}") from None
    if version != SEARCH_VERSION:
        raise StateError(
            f"{path}: search version {version!r:.80} is not readable here; this release reads "
            f"version {SEARCH_VERSION}: finish it with the release that began it"
        )
    wanted = json.loads(json.dumps(_identity(search)))
    changed = [name for name, value in wanted.items() if header.get(name) != value]
    if changed:
        raise StateError(
            f"{path}: was begun with another {' and another '.join(changed)}; repeat its "
            "command, or choose a new folder"
        )
    try:
        secret, settings = bytes.fromhex(header["secret"]), tuple(header["settings"])
        is_seeded = bool(header["is_seeded"])
    except (ValueError, KeyError, TypeError) as error:
        raise StateError(f"{file}: not readable: {error!r:.200}") from None
    if seed is not None and secret != _secret_of(seed):
        raise StateError(f"{path}: was begun with another seed than {seed}; leave --seed out")
    return SearchFolder(path, settings, secret, is_seeded)


def _random(secret: bytes, purpose: str) -> Random:
    return Random(int.from_bytes(derive_bytes(secret, purpose), "little"))


def _secret_of(seed: int) -> bytes:
    return derive_bytes(b"", f"search {seed}")
