"""The folder of a search: what it is, what was drawn, which tries have ended."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import SystemRandom

from tf_dpfl.protocol.errors import StateError
from tf_dpfl.protocol.files import append_line_durably, drop_torn_line
from tf_dpfl.protocol.plan_files import plan_to_toml
from tf_dpfl.simulation.run_folder import read_text
from tf_dpfl.simulation.runs_folder import (
    FolderKind,
    RunsFolder,
    open_runs_folder,
    random_of,
    unreadable_header,
)
from tf_dpfl.simulation.tuning_keys import Setting, draw, grid
from tf_dpfl.simulation.tuning_plans import GRID, Search, check_settings

SEARCH_VERSION = 1

_KIND = FolderKind(what="search", header="search.json", runs="tries", version=SEARCH_VERSION)


@dataclass(frozen=True)
class SearchFolder(RunsFolder):
    """Paths of a search, and what was drawn for it once and for all.

    `settings`: one for each try, in their order. Folds come from `secret`.
    """

    settings: tuple[Setting, ...]

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
        return self.path / _KIND.runs

    def run_of(self, number: int, fold: int) -> Path:
        """The RUN folder of a try (from 1), and of its fold (from 1; 0 without folds)."""
        run = self._tries / f"{number:04d}"
        return run / f"fold-{fold}" if fold else run

    def run_seed(self, number: int, fold: int) -> int | None:
        """The seed of a try's run; None leaves it to the operating system."""
        return self.seed_of(f"run {number} {fold}")

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
    mode = 0o700 if search.keeps_tries_secret else 0o755
    with open_runs_folder(
        path,
        _KIND,
        identity={**search.to_json(), "plan": plan_to_toml(search.plan)},
        seed=seed,
        drawn=lambda secret: {"settings": _settings_of(search, secret, is_seeded=seed is not None)},
        mode=mode,
    ) as (folder, header):
        try:
            settings = tuple(header["settings"])
        except (KeyError, TypeError) as error:
            raise unreadable_header(path / _KIND.header, error) from None
        yield SearchFolder(folder.path, folder.secret, folder.is_seeded, settings)


def _settings_of(search: Search, secret: bytes, *, is_seeded: bool) -> list[Setting]:
    """What a new search tries."""
    if search.method == GRID:
        return list(grid(search.keys))
    random = random_of(secret, "settings") if is_seeded else SystemRandom()
    settings = draw(search.keys, mean_tries=search.mean_tries or 1.0, random=random)
    check_settings(search, settings)
    return list(settings)
