"""The loop of rounds: sample, charge, train, evaluate, checkpoint, report."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from models.keeping import load_keras, require_keepable
from models.registry import build_model
from models.validate import validate_model
from tf_dpfl.client_work.interface import interface_of
from tf_dpfl.data.federated import FederatedData, load_federated_data
from tf_dpfl.data.sharing import shared_on_this_machine
from tf_dpfl.privacy.calibration import calibrate_plan
from tf_dpfl.privacy.card import PrivacyCard
from tf_dpfl.protocol.checks import finite_or_none
from tf_dpfl.protocol.plan import Plan
from tf_dpfl.simulation.checkpoints import load_newest_checkpoint, save_checkpoint
from tf_dpfl.simulation.cohort import derive_bytes, draw_cohort
from tf_dpfl.simulation.evaluation import Evaluator
from tf_dpfl.simulation.process import build_learning_process
from tf_dpfl.simulation.report import write_report
from tf_dpfl.simulation.run_folder import RunFolder, open_run, save_keras_atomically
from tf_dpfl.simulation.run_ledger import RunLedger
from tf_dpfl.simulation.runtime import tff_runtime
from tf_dpfl.simulation.shard import make_shards

EventSink = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True)
class SimulationResult:
    """What a finished run released.

    `accuracy` is that of the last round on the held-out examples, None without any.
    """

    folder: Path
    model: tf.keras.Model
    rounds: int
    accuracy: float | None
    card: PrivacyCard


def simulate(
    plan: Plan,
    out: str | Path,
    *,
    model: tf.keras.Model | None = None,
    data: FederatedData | None = None,
    seed: int | None = None,
    on_event: EventSink | None = None,
) -> SimulationResult:
    """Runs the plan's rounds in TFF; goes on where an earlier call stopped.

    Writes `plan.toml`, `metrics.jsonl` (one object a round), `ledger.jsonl`,
    `checkpoints/`, `model.keras`, `privacy.json` and `report.html` into `out`.

    Args:
      plan: as `load_plan` gives it; a target epsilon is calibrated first.
      out: a new folder, or one an earlier call with the same plan left behind.
      model: a Keras model ending in logits, which is left as it is; None builds
        `plan.task.model`.
      data: None loads `plan.data`.
      seed: makes the run reproducible, and its noise no secret: for trials. None
        takes all randomness from the operating system.
      on_event: called with {"event": "started" | "round" | "finished", ...}.

    Raises:
      DpflError: a plan, model, data set or folder that cannot be used.
    """
    plan = calibrate_plan(plan)
    data = load_federated_data(plan) if data is None else data
    emit = on_event or (lambda event: None)
    with open_run(Path(out), plan, seed=seed) as folder:
        model = _initial_model(folder, plan, data, model)
        data = data.fitted(interface_of(model, plan.local_training))
        with shared_on_this_machine(data) as data, tff_runtime():
            return _run_rounds(plan, folder, model, data, emit)


def _initial_model(
    folder: RunFolder, plan: Plan, data: FederatedData, model: tf.keras.Model | None
) -> tf.keras.Model:
    """A copy of the model the run began with; a resumed run must not begin with another."""
    if not folder.initial_model_file.exists():
        if model is None:
            seed = int.from_bytes(derive_bytes(folder.seed, "initial weights")[:4], "little")
            tf.keras.utils.set_random_seed(seed)
            model = build_model(plan.task.model, input_shape=data.input_shape, classes=data.outputs)
        # Before it is kept: a refused model must not be what a resumed run begins with.
        validate_model(model)
        require_keepable(model)
        save_keras_atomically(model, folder.initial_model_file)
    return load_keras(folder.initial_model_file)


def _run_rounds(
    plan: Plan, folder: RunFolder, model: tf.keras.Model, data: FederatedData, emit: EventSink
) -> SimulationResult:
    noise_seed = np.frombuffer(derive_bytes(folder.seed, "noise")[:16], np.int64)
    process = build_learning_process(plan, model, data, noise_seed=noise_seed)
    state = process.initialize()
    done, state = load_newest_checkpoint(folder.checkpoints, state) or (0, state)
    ledger = RunLedger(folder, plan, rounds_done=done)
    folder.keep_metrics_until(done)
    evaluator = Evaluator(model, data, plan.local_training) if data.test_examples else None
    rounds = plan.server.rounds
    emit({"event": "started", "round": done, "rounds": rounds, "folder": str(folder.path)})
    for number in range(done + 1, rounds + 1):
        began = time.monotonic()
        cohort = draw_cohort(plan.clients, run_seed=folder.seed, round_number=number)
        epsilon = ledger.charge(number)  # before anything of the round can be seen
        output = process.next(state, make_shards(data, cohort, plan))
        state = output.state
        last = number == rounds
        record: dict[str, Any] = {
            "round": number,
            "reports": int(output.metrics["reports"]),
            "nonfinite": int(output.metrics["nonfinite"]),
            "released": bool(output.metrics["released"]),
            "central_epsilon": finite_or_none(epsilon),
            "delta": plan.privacy.delta,
        }
        if evaluator and (last or number % plan.simulation.evaluate_every == 0):
            _set_weights(process, state, model)
            figures = evaluator.evaluate()
            record |= {"accuracy": figures.accuracy, "loss": figures.loss}
        record["seconds"] = round(time.monotonic() - began, 4)
        folder.append_metrics(record)
        emit({"event": "round", "rounds": rounds, **record})
        if last or number % plan.simulation.checkpoint_every == 0:
            _release(process, state, model, folder, ledger, number)
    return _finish(plan, folder, model, ledger, emit)


def _set_weights(process: tff.learning.templates.LearningProcess, state: Any, model: Any) -> None:
    process.get_model_weights(state).assign_weights_to(model)


def _release(
    process: tff.learning.templates.LearningProcess,
    state: Any,
    model: tf.keras.Model,
    folder: RunFolder,
    ledger: RunLedger,
    number: int,
) -> None:
    """Writes what somebody may take from the folder, then the checkpoint."""
    _set_weights(process, state, model)
    ledger.write_card()
    save_keras_atomically(model, folder.model_file)
    save_checkpoint(folder.checkpoints, state, round_number=number)


def _finish(
    plan: Plan, folder: RunFolder, model: tf.keras.Model, ledger: RunLedger, emit: EventSink
) -> SimulationResult:
    metrics = folder.read_metrics()
    if folder.model_file.exists():  # a call on a finished run trains nothing
        model = load_keras(folder.model_file)
    card = ledger.write_card()
    write_report(folder.report_file, metrics, card)
    accuracy = metrics[-1].get("accuracy") if metrics else None
    emit(
        {
            "event": "finished",
            "rounds": plan.server.rounds,
            "accuracy": accuracy,
            "central_epsilon": finite_or_none(ledger.epsilon),
            "folder": str(folder.path),
        }
    )
    return SimulationResult(folder.path, model, plan.server.rounds, accuracy, card)
