"""Comparing ways to train one task: variant after variant, their figures side by side."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tensorflow as tf

from models.keeping import load_keras
from tf_dpfl.client_work.computation import layout_of
from tf_dpfl.data.federated import FederatedData, load_federated_data
from tf_dpfl.protocol.errors import DataError, StateError
from tf_dpfl.protocol.plan import Plan
from tf_dpfl.protocol.plan_files import plan_to_toml
from tf_dpfl.simulation.central_run import run_centrally, schedule_of, stored_bytes
from tf_dpfl.simulation.cohort import derive_bytes
from tf_dpfl.simulation.comparing_cost import cost_of
from tf_dpfl.simulation.comparing_outcome import (
    Outcome,
    Traffic,
    has_ended,
    keep_outcome,
    read_outcome,
    traffic_of,
)
from tf_dpfl.simulation.comparing_plans import CENTRAL, Comparison, Variant, comparison_of
from tf_dpfl.simulation.comparing_report import write_comparison_report
from tf_dpfl.simulation.comparing_tables import COMPARISON_VERSION, Found, write_tables
from tf_dpfl.simulation.run_folder import RunFolder
from tf_dpfl.simulation.runs_folder import FolderKind, RunsFolder, open_runs_folder
from tf_dpfl.simulation.simulate import FORWARDED, EventSink, initial_model, simulate

_KIND = FolderKind(
    what="comparison", header="comparison.json", runs="variants", version=COMPARISON_VERSION
)


@dataclass(frozen=True)
class ComparisonResult:
    """What a comparison found.

    Attributes:
      folder: where `compare.html`, `compare.csv`, `variants.csv` and `compare.json` are.
      outcomes: of every variant that was trained, in the order of the names.
      not_compared: name and reason of each other one.
      privacy_in_words: what the comparison costs and what that covers.
    """

    folder: Path
    outcomes: tuple[Outcome, ...]
    not_compared: Mapping[str, str]
    privacy_in_words: tuple[str, ...]


def compare(
    plan: Plan,
    out: str | Path,
    *,
    data_is: str,
    only: Sequence[str] = (),
    seed: int | None = None,
    model: tf.keras.Model | None = None,
    data: FederatedData | None = None,
    workers: Sequence[str] = (),
    on_event: EventSink | None = None,
) -> ComparisonResult:
    """Trains one task centrally, federated, and federated with privacy in each way.

    All variants have the same data, initial weights and training; those with privacy have
    the plan's own central epsilon. Goes on where an earlier call stopped: variants that
    ended are not trained again.

    Args:
      plan: as `load_plan` gives it.
      out: a new folder, or one an earlier call with the same plan left behind.
      data_is: whose data these are: "public", "synthetic" or "private".
      only: names of the variants to train (`comparing_plans.NAMES`); empty: all that the
        plan can be, on private data all that are private.
      seed: makes everything reproducible, and no noise secret: for studies.
      model, data, workers, on_event: as for `simulate`; on_event is called with {"event":
        "comparison" | "round" | "worker lost" | "worker found" | "variant" | "finished", ...}.

    Raises:
      PlanError: with all faults of the plan and the arguments, before anything runs.
      DpflError: as `simulate`; DataError where there is no test split.
    """
    comparison = comparison_of(plan, data_is=data_is, only=only)
    return run_comparison(
        comparison, out, seed=seed, model=model, data=data, workers=workers, on_event=on_event
    )


def run_comparison(
    comparison: Comparison,
    out: str | Path,
    *,
    seed: int | None = None,
    model: tf.keras.Model | None = None,
    data: FederatedData | None = None,
    workers: Sequence[str] = (),
    on_event: EventSink | None = None,
) -> ComparisonResult:
    """`compare` for a comparison that was checked."""
    emit = on_event or (lambda event: None)
    plan = comparison.plan
    data = load_federated_data(plan) if data is None else data
    if not data.test_examples:
        raise DataError("the data have no test split to compare on: set data.test_path")
    with _opened(Path(out), comparison, seed=seed) as folder:
        start = _model_of_all(folder, comparison, data, model)
        begun = [v.name for v in comparison.variants if v.is_run or _run_of(folder, v).exists()]
        cost = cost_of(comparison, begun)
        words = tuple(cost.in_words(is_seeded=folder.is_seeded))
        emit(
            {
                "event": "comparison",
                "variants": [v.name for v in comparison.variants if v.is_run],
                "not_compared": _reasons(comparison, folder),
                "privacy": cost.to_json(),
                "privacy_in_words": words,
                "folder": str(folder.path),
            }
        )
        _Trainings(comparison, folder, start, data, workers, emit).run()
        outcomes = tuple(
            read_outcome(_run_of(folder, variant), variant)
            for variant in comparison.variants
            if variant.plan is not None and has_ended(_run_of(folder, variant))
        )
        left = _reasons(comparison, folder)
        schedule = schedule_of(plan, data)
        found = Found(
            comparison, outcomes, left, schedule, data.test_examples, cost.to_json(), words
        )
        write_tables(folder.path, found)
        write_comparison_report(folder.path / "compare.html", found)
        emit(
            {
                "event": "finished",
                "accuracies": {outcome.name: outcome.accuracy for outcome in outcomes},
                "not_compared": left,
                "privacy": cost.to_json(),
                "folder": str(folder.path),
            }
        )
        return ComparisonResult(folder.path, outcomes, left, words)


@contextlib.contextmanager
def _opened(path: Path, comparison: Comparison, *, seed: int | None) -> Iterator[RunsFolder]:
    """The folder; what `only` names is no part of what must be the same."""
    identity = {"data": comparison.data_is, "plan": plan_to_toml(comparison.plan)}
    with open_runs_folder(path, _KIND, identity=identity, seed=seed) as (folder, _):
        yield folder


def _as_run(folder: RunsFolder) -> RunFolder:
    """The folder itself, for the model that all variants begin with."""
    return RunFolder(folder.path, folder.secret, folder.is_seeded)


def _run_of(folder: RunsFolder, variant: Variant) -> Path:
    return folder.path / _KIND.runs / variant.name


def _model_of_all(
    folder: RunsFolder, comparison: Comparison, data: FederatedData, model: tf.keras.Model | None
) -> tf.keras.Model:
    """What all variants begin with, those of a later call too; StateError when it was lost."""
    run = _as_run(folder)
    begun = [v.name for v in comparison.variants if _run_of(folder, v).exists()]
    if begun and not run.initial_model_file.exists():
        raise StateError(
            f"{run.initial_model_file}: is missing, and {', '.join(begun)} began with it; restore "
            "it, or compare in a new folder"
        )
    return initial_model(run, comparison.plan, data, model)


def _reasons(comparison: Comparison, folder: RunsFolder) -> dict[str, str]:
    """Why variants are neither run nor in the folder from an earlier call."""
    return {
        v.name: v.why_not
        for v in comparison.variants
        if not v.is_run and not has_ended(_run_of(folder, v))
    }


@dataclass(frozen=True)
class _Trainings:
    """What every training of a comparison needs."""

    comparison: Comparison
    folder: RunsFolder
    start: tf.keras.Model
    data: FederatedData
    workers: Sequence[str]
    emit: EventSink

    def run(self) -> None:
        """Trains what has not ended yet."""
        variants = [v for v in self.comparison.variants if v.is_run]
        for number, variant in enumerate(variants, 1):
            began, place = time.monotonic(), _run_of(self.folder, variant)
            if not has_ended(place):
                self._train(variant, place)
            outcome = read_outcome(place, variant)
            self.emit(
                {
                    "event": "variant",
                    "variant": variant.name,
                    "number": number,
                    "variants": len(variants),
                    "accuracy": outcome.accuracy,
                    "seconds": round(time.monotonic() - began, 2),
                }
            )

    def _train(self, variant: Variant, place: Path) -> None:
        def forward(event: Mapping[str, Any]) -> None:
            if event["event"] in FORWARDED:
                self.emit({"event": event["event"], "variant": variant.name, **event})

        plan = variant.plan
        assert plan is not None
        traffic = traffic_of(plan, weights=layout_of(self.start).size)
        card, card_text = None, ""
        if variant.name == CENTRAL:
            secret = derive_bytes(self.folder.secret, f"run {variant.name}")
            run = RunFolder(place, secret, self.folder.is_seeded)
            model = load_keras(_as_run(self.folder).initial_model_file)  # one to be changed
            run_centrally(plan, run, model, self.data, forward)
            once = stored_bytes(self.data, plan) / self.data.population
            traffic = Traffic(down=0, up=0, once=once)
        else:
            result = simulate(
                plan,
                place,
                model=self.start,
                data=self.data,
                seed=self.folder.seed_of(f"run {variant.name}"),
                workers=self.workers,
                on_event=forward,
            )
            if variant.is_private:
                card, card_text = result.card.to_json(), result.card.to_text()
        keep_outcome(place, card=card, card_text=card_text, traffic=traffic)
