"""Searching for the best setting of a plan: try after try, the table, the cost."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tensorflow as tf

from tf_dpfl.data.federated import FederatedData, load_federated_data
from tf_dpfl.privacy.tuning_cost import SearchCost
from tf_dpfl.protocol.errors import DataError, PlanError
from tf_dpfl.protocol.files import write_atomically
from tf_dpfl.protocol.plan import Plan
from tf_dpfl.protocol.plan_files import load_plan, plan_to_toml
from tf_dpfl.protocol.tuning_section import Tuning
from tf_dpfl.simulation.report import write_report
from tf_dpfl.simulation.run_folder import PLAN_FILE, open_run
from tf_dpfl.simulation.run_ledger import RunLedger
from tf_dpfl.simulation.runs_folder import OWNER_ALONE
from tf_dpfl.simulation.simulate import FORWARDED, EventSink, simulate
from tf_dpfl.simulation.tuning_charges import Calibration, Charges, cost_in_words, cost_json
from tf_dpfl.simulation.tuning_folder import SEARCH_VERSION, SearchFolder, open_search
from tf_dpfl.simulation.tuning_folds import (
    accuracy_of_users,
    draw_folds,
    split_off,
    with_noise,
)
from tf_dpfl.simulation.tuning_keys import TriedSetting, grid
from tf_dpfl.simulation.tuning_plans import GRID, Search, search_of
from tf_dpfl.simulation.tuning_report import write_search_report
from tf_dpfl.simulation.tuning_statement import tuning_of


@dataclass(frozen=True)
class TuningResult:
    """What a search found.

    Attributes:
      folder: where `tune.json`, `best.toml` and `report.html` are.
      ranking: every try, the best first.
      best_plan: the plan with the best setting; its section [tuning] says how it was found.
      best_run: the RUN folder of the best try; None with folds, which train on a part of
        the users each.
      cost: None where the data are public or synthetic: the search costs nothing.
      cost_in_words: what it costs and what that covers.
    """

    folder: Path
    ranking: tuple[TriedSetting, ...]
    best_plan: Plan
    best_run: Path | None
    cost: SearchCost | None
    cost_in_words: tuple[str, ...]


def tune(
    plan: Plan,
    over: Sequence[str],
    out: str | Path,
    *,
    data_is: str,
    method: str = GRID,
    points: int | None = None,
    mean_tries: float | None = None,
    folds: int = 0,
    score_noise: float | None = None,
    seed: int | None = None,
    model: tf.keras.Model | None = None,
    data: FederatedData | None = None,
    workers: Sequence[str] = (),
    on_event: EventSink | None = None,
) -> TuningResult:
    """Tries settings of a plan, ranks them by validation accuracy and states what that costs.

    Goes on where an earlier call stopped: tries that ended are not run again.

    Args:
      plan: as `load_plan` gives it.
      over: texts "KEY=a,b,c" or "KEY=LOW..HIGH"; see `tuning_keys.read_keys`.
      out: a new folder, or one an earlier call with the same arguments left behind.
      data_is: whose data these are: "public", "synthetic" or "private".
      method: "grid", or "random" with a random number of tries.
      points: of a range in a grid, 2 to 100; None: 5.
      mean_tries: of a random search, 1 to 1000; None: 10.
      folds: >= 2 cross-validates over users: those of a fold are held out of its training
        and judge it. 0 judges on the plan's test split.
      score_noise: with folds and private data, the standard deviation of the noise on each
        fold's sum of users' accuracies, in users; None: 5.
      seed: makes everything reproducible, and no noise secret: for studies.
      model, data, workers, on_event: as for `simulate`; on_event is called with {"event":
        "search" | "round" | "worker lost" | "worker found" | "try" | "finished", ...}.

    Raises:
      PlanError: with all faults of all plans, before anything runs.
      DpflError: as `simulate`; DataError without folds where there is no test split.

    Source: random search: Papernot & Steinke, 2110.03620.
    """
    search = search_of(
        plan,
        over,
        data_is=data_is,
        method=method,
        points=points,
        mean_tries=mean_tries,
        folds=folds,
        score_noise=score_noise,
    )
    return run_search(
        search, out, seed=seed, model=model, data=data, workers=workers, on_event=on_event
    )


def run_search(
    search: Search,
    out: str | Path,
    *,
    seed: int | None = None,
    model: tf.keras.Model | None = None,
    data: FederatedData | None = None,
    workers: Sequence[str] = (),
    on_event: EventSink | None = None,
) -> TuningResult:
    """`tune` for a search that was checked."""
    emit = on_event or (lambda event: None)
    calibrated = Calibration()
    charges = Charges(search, calibrated) if search.is_private else None
    if charges:  # what cannot be accounted for is refused before a folder is made
        charges.cost(grid(search.keys) if search.method == GRID else ())
    data = load_federated_data(search.plan) if data is None else data
    if not search.folds and not data.test_examples:
        raise DataError(
            "the data have no test split to judge tries on: set data.test_path, or --folds"
        )
    with open_search(Path(out), search, seed=seed) as folder:
        cost = charges.cost(folder.settings) if charges else None
        words = cost_in_words(
            search,
            cost,
            tries=len(folder.settings),
            samplings=charges.samplings() if charges else (),
            is_seeded=folder.is_seeded,
        )
        emit(
            {
                "event": "search",
                "keys": [key.described() for key in search.keys],
                "also_in": {k.name: list(k.also_in) for k in search.keys if k.also_in},
                "method": search.method,
                "tries": len(folder.settings),
                "folds": search.folds,
                "privacy": cost_json(search, cost),
                "privacy_in_words": words,
                "folder": str(folder.path),
            }
        )
        tries = _Tries(search, folder, calibrated, model, data, workers, emit)
        ranking = tries.ranked()
        solved = calibrated(search.plan_of(ranking[0].setting))
        tuning = tuning_of(
            search,
            cost,
            solved,
            tries=len(folder.settings),
            samplings=charges.samplings() if charges else (),
            is_seeded=folder.is_seeded,
        )
        if not search.folds:
            _tell_run(folder.run_of(ranking[0].number, 0), replace(solved, tuning=tuning))
        return _finish(search, folder, ranking, tuning, cost, words, emit)


@dataclass(frozen=True)
class _Tries:
    """What every try of a search needs."""

    search: Search
    folder: SearchFolder
    calibrated: Calibration
    model: tf.keras.Model | None
    data: FederatedData
    workers: Sequence[str]
    emit: EventSink

    def ranked(self) -> tuple[TriedSetting, ...]:
        """Runs what has not ended yet; all tries, the best first, the earlier of equal ones."""
        scores = self.folder.scores()
        held_out = self._folds()
        tried = []
        for number, setting in enumerate(self.folder.settings, 1):
            began = time.monotonic()
            plan = self.calibrated(self.search.plan_of(setting))
            trainings = self.search.trainings(plan)
            for fold, training in enumerate(trainings, 1 if self.search.folds else 0):
                if (number, fold) not in scores:
                    users = held_out[fold - 1] if held_out else None
                    score = self._score(number, fold, training, users)
                    self.folder.keep_score(number, fold, score)  # before anybody sees it
                    scores[number, fold] = score
            total = sum(score for (n, _), score in scores.items() if n == number)
            accuracy = total / self.data.population if self.search.folds else total
            tried.append(TriedSetting(number, setting, accuracy))
            self.emit(
                {
                    "event": "try",
                    "try": number,
                    "tries": len(self.folder.settings),
                    "setting": setting,
                    "accuracy": accuracy,
                    "seconds": round(time.monotonic() - began, 2),
                }
            )
        return tuple(sorted(tried, key=lambda one: (-one.accuracy, one.number)))

    def _folds(self) -> list[Any]:
        if not self.search.folds:
            return []
        random = self.folder.random("folds")
        return draw_folds(self.data.population, self.search.folds, random=random)

    def _score(self, number: int, fold: int, training: Plan, held_out: Any) -> float:
        """Trains one run and judges it: an accuracy, or a fold's sum over its users."""

        def forward(event: Mapping[str, Any]) -> None:
            if event["event"] in FORWARDED:
                place = {"try": number, "tries": len(self.folder.settings)}
                if fold:
                    place |= {"fold": fold, "folds": self.search.folds}
                self.emit({"event": event["event"], **place, **event})

        run, seed = self.folder.run_of(number, fold), self.folder.run_seed(number, fold)
        run.parent.mkdir(parents=True, exist_ok=True)
        data = self.data
        if held_out is not None:
            limit = training.clients.examples_per_client
            split = split_off(self.data, held_out, limit=limit)
            data = split.training
        _take_back(run, training)
        result = simulate(
            training,
            run,
            model=self.model,
            data=data,
            seed=seed,
            workers=self.workers,
            on_event=forward,
        )
        if held_out is None:
            return float(result.accuracy or 0.0)
        score = accuracy_of_users(split, result.model, training.local_training)
        if self.search.score_noise is None:
            return score
        source = self.folder.random_bytes(f"score {number} {fold}")
        return with_noise(score, stddev=self.search.score_noise, random_bytes=source)


def _tell_run(run: Path, plan: Plan) -> None:
    """The RUN of the best try says the same as the best plan, in its plan, card and report."""
    write_atomically(run / PLAN_FILE, plan_to_toml(plan).encode())
    with open_run(run, plan, seed=None) as folder:
        card = RunLedger(folder, plan, rounds_done=plan.server.rounds).write_card()
        write_report(folder.report_file, folder.read_metrics(), card)


def _take_back(run: Path, plan: Plan) -> None:
    """A run that was told how it was found, and is scored again, is the run of `plan` still."""
    file = run / PLAN_FILE
    with contextlib.suppress(PlanError):  # of a damaged file, which `simulate` names
        if file.exists() and replace(load_plan(file), tuning=plan.tuning) == plan:
            write_atomically(file, plan_to_toml(plan).encode())


def _finish(
    search: Search,
    folder: SearchFolder,
    ranking: tuple[TriedSetting, ...],
    tuning: Tuning,
    cost: SearchCost | None,
    words: list[str],
    emit: EventSink,
) -> TuningResult:
    best = ranking[0]
    best_plan = replace(search.plan_of(best.setting), tuning=tuning)
    best_run = None if search.folds else folder.run_of(best.number, 0)
    table = [
        {"rank": rank, "try": one.number, "accuracy": one.accuracy, "setting": one.setting}
        for rank, one in enumerate(ranking, 1)
    ]
    result = {
        "ranking": table,
        "best_run": str(best_run.relative_to(folder.path)) if best_run else None,
        "privacy": cost_json(search, cost),
        "privacy_in_words": words,
    }
    mode = OWNER_ALONE if search.keeps_tries_secret else 0o644
    text = json.dumps({"version": SEARCH_VERSION, **search.to_json(), **result}, indent=1) + "\n"
    write_atomically(folder.result_file, text.encode(), mode=mode)
    write_atomically(folder.best_plan_file, plan_to_toml(best_plan).encode())
    write_search_report(folder.report_file, search, ranking, words, mode=mode)
    emit({"event": "finished", **result, "folder": str(folder.path)})
    return TuningResult(folder.path, ranking, best_plan, best_run, cost, tuple(words))
