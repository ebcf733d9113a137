"""The loop of rounds: sample, charge, train, evaluate, checkpoint, report."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff
from numpy.typing import NDArray

from models.keeping import load_keras, require_keepable
from models.registry import build_model
from models.validate import validate_model
from tf_dpfl.client_work.computation import layout_of
from tf_dpfl.client_work.interface import interface_of
from tf_dpfl.data.federated import FederatedData, load_federated_data
from tf_dpfl.data.sharing import shared_on_this_machine
from tf_dpfl.privacy.calibration import calibrate_plan
from tf_dpfl.privacy.card import PrivacyCard
from tf_dpfl.privacy.preflight import preflight
from tf_dpfl.protocol.checks import finite_or_none
from tf_dpfl.protocol.plan import Plan
from tf_dpfl.simulation.checkpoints import load_newest_checkpoint, save_checkpoint
from tf_dpfl.simulation.cohort import derive_bytes, draw_cohort, shards_of_a_round
from tf_dpfl.simulation.evaluation import Evaluator
from tf_dpfl.simulation.optimizer_states import OptimizerStates
from tf_dpfl.simulation.pace import Pace
from tf_dpfl.simulation.process import build_learning_process
from tf_dpfl.simulation.records import OPTIMIZER_STATE
from tf_dpfl.simulation.report import write_report
from tf_dpfl.simulation.run_folder import RunFolder, open_run, save_keras_atomically
from tf_dpfl.simulation.run_ledger import RunLedger
from tf_dpfl.simulation.runtime import Runtime, tff_runtime
from tf_dpfl.simulation.shard import make_shards
from tf_dpfl.simulation.tensorboard import TensorBoardLog

EventSink = Callable[[Mapping[str, Any]], None]

FORWARDED = ("round", "worker lost", "worker found")
"""Of a run's events, those that say something of the search or comparison it is part of."""


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
    workers: Sequence[str] = (),
    on_event: EventSink | None = None,
) -> SimulationResult:
    """Runs the plan's rounds in TFF; goes on where an earlier call stopped.

    Writes `plan.toml`, `metrics.jsonl` (one object a round), `tensorboard/`,
    `ledger.jsonl`, `checkpoints/`, `model.keras`, `privacy.json` and `report.html`
    into `out`. Every core of this machine computes, or those of `workers`.

    Args:
      plan: as `load_plan` gives it; a target epsilon is calibrated first.
      out: a new folder, or one an earlier call with the same plan left behind.
      model: a Keras model ending in logits, which is left as it is; None builds
        `plan.task.model`.
      data: None loads `plan.data`.
      seed: makes the run reproducible, and its noise no secret: for trials. None
        takes all randomness from the operating system.
      workers: "host:port" of TFF workers (`dpfl worker`) to compute on. One that
        dies is survived, with the same result, as long as another one answers.
      on_event: called with {"event": "preflight" | "traced" | "started" | "round" | "checkpoint" |
        "worker lost" | "worker found" | "finished", ...}.

    Raises:
      DpflError: a plan, model, data set or folder that cannot be used; no worker
        is left (a later call goes on).
    """
    plan = calibrate_plan(plan)
    data = load_federated_data(plan) if data is None else data
    emit = on_event or (lambda event: None)
    with open_run(Path(out), plan, seed=seed) as folder:
        model = initial_model(folder, plan, data, model)
        data = data.fitted(interface_of(model, plan.local_training))
        with contextlib.ExitStack() as stack:
            if not workers:  # remote ones see no memory of this machine
                data = stack.enter_context(shared_on_this_machine(data))
            inherited = data.files.descriptors if data.files else ()
            runtime = stack.enter_context(tff_runtime(workers=workers, inherited=inherited))
            for notice in runtime.notices():
                emit(notice)
            return _run_rounds(plan, folder, model, data, runtime, emit)


def _tell_preflight(plan: Plan, model: tf.keras.Model, emit: EventSink) -> None:
    """Says what the noise leaves of the updates, before time is spent on it."""
    found = preflight(plan, weights=layout_of(model).size)
    if found is not None:
        event = {"event": "preflight", "signal_to_noise": found.signal_to_noise}
        emit({**event, "warning": found.warning} if found.warning else event)


def initial_model(
    folder: RunFolder, plan: Plan, data: FederatedData, model: tf.keras.Model | None
) -> tf.keras.Model:
    """A copy of the model the run began with; a resumed run must not begin with another.

    `model` None builds the plan's, with weights from the run's seed.
    """
    if not folder.initial_model_file.exists():
        if model is None:
            seed = int.from_bytes(derive_bytes(folder.seed, "initial weights")[:4], "little")
            tf.keras.utils.set_random_seed(seed)
            model = build_model(
                plan.task.model,
                input_shape=data.input_shape,
                classes=data.outputs,
                positions=data.positions,
            )
        # Before it is kept: a refused model must not be what a resumed run begins with.
        validate_model(model)
        require_keepable(model)
        save_keras_atomically(model, folder.initial_model_file)
    return load_keras(folder.initial_model_file)


def _run_rounds(
    plan: Plan,
    folder: RunFolder,
    model: tf.keras.Model,
    data: FederatedData,
    runtime: Runtime,
    emit: EventSink,
) -> SimulationResult:
    began = time.monotonic()
    noise_seed = np.frombuffer(derive_bytes(folder.seed, "noise")[:16], np.int64)
    process = build_learning_process(plan, model, data, noise_seed=noise_seed)
    state = process.initialize()
    done, state, states = _where_it_stopped(plan, folder, model, state)
    ledger = RunLedger(folder, plan, rounds_done=done)
    folder.keep_metrics_until(done)
    evaluator = Evaluator(model, data, plan.local_training) if data.test_examples else None
    rounds = plan.server.rounds
    run = _Run(plan, folder, model, data, runtime, emit, process, ledger, evaluator, states)
    if done < rounds:
        _tell_preflight(plan, model, emit)
        # Over no users at all: compiles, and makes the graphs' sessions on every worker.
        process.next(state, run.shards(np.zeros(0, np.int64)))
        emit({"event": "traced", "seconds": round(time.monotonic() - began, 2)})
    emit(
        {
            "event": "started",
            "round": done,
            "rounds": rounds,
            "shards": shards_of_a_round(plan, places=runtime.places),
            "workers": ", ".join(runtime.workers),
            "folder": str(folder.path),
        }
    )
    if done < rounds:
        run.compute(state, done=done)
    return _finish(plan, folder, model, ledger, emit)


def _where_it_stopped(
    plan: Plan, folder: RunFolder, model: tf.keras.Model, initial: Any
) -> tuple[int, Any, OptimizerStates | None]:
    """Rounds done, the state after them, and the users' own states where they are kept."""
    size = plan.local_training.kept_values(weights=layout_of(model).size)
    if not size:
        return *(load_newest_checkpoint(folder.checkpoints, initial) or (0, initial)), None
    where, population = folder.optimizer_states, plan.clients.population
    nobodys = OptimizerStates(where, population=population, size=size)
    found = load_newest_checkpoint(folder.checkpoints, (initial, nobodys.places))
    if found is None:
        return 0, initial, nobodys
    done, (state, places) = found
    return done, state, OptimizerStates(where, population=population, size=size, places=places)


@dataclass(frozen=True)
class _Run:
    """What every round of a run needs."""

    plan: Plan
    folder: RunFolder
    model: tf.keras.Model
    data: FederatedData
    runtime: Runtime
    emit: EventSink
    process: tff.learning.templates.LearningProcess
    ledger: RunLedger
    evaluator: Evaluator | None
    states: OptimizerStates | None

    def shards(self, user_ids: NDArray[np.int64]) -> list[Any]:
        """The cohort's data, in as many pieces as keep the workers busy."""
        states = self.states.of(user_ids) if self.states else None
        places = self.runtime.places
        return make_shards(self.data, user_ids, self.plan, places=places, optimizer_states=states)

    def compute(self, state: Any, *, done: int) -> None:
        """All rounds after round `done`, which left `state`."""
        rounds = self.plan.server.rounds
        pace = Pace(rounds=rounds - done)
        board = TensorBoardLog(self.folder.tensorboard, first_round=done + 1)
        # One thread for the whole run: each new one may get a heap of its own.
        with contextlib.closing(board), ThreadPoolExecutor(1) as beside:
            for number in range(done + 1, rounds + 1):
                began = time.monotonic()
                state, record = self._round(state, number, beside)
                record["seconds"] = round(time.monotonic() - began, 4)
                self.folder.append_metrics(record)
                speed = {"users_per_second": round(record["reports"] / record["seconds"], 1)}
                board.add_round(record | speed)
                left = {"seconds_left": round(pace.seconds_left(number - done), 1)}
                self.emit({"event": "round", "rounds": rounds, **record, **speed, **left})
                if number == rounds or (
                    number % self.plan.simulation.checkpoint_every == 0 and pace.allows_checkpoint()
                ):
                    with pace.checkpoint():
                        self._release(state, number)
                    cost = {"seconds": round(pace.last_checkpoint_s, 4)}
                    self.emit({"event": "checkpoint", "round": number, **cost})

    def _round(
        self, state: Any, number: int, beside: ThreadPoolExecutor
    ) -> tuple[Any, dict[str, Any]]:
        """One round's new state and what is recorded of it."""
        cohort = draw_cohort(self.plan.clients, run_seed=self.folder.seed, round_number=number)
        self.ledger.charge(number)  # before anything of the round can be seen
        # Composing so many rounds takes as long as a small round: the workers
        # compute that meanwhile.
        epsilon = beside.submit(self.ledger.epsilon_after, number)
        output = self.process.next(state, self.shards(cohort))
        if self.states:
            kept = output.metrics["kept"]
            self.states.put(kept["user_id"], kept[OPTIMIZER_STATE])
        for notice in self.runtime.notices():
            self.emit(notice)
        record: dict[str, Any] = {
            "round": number,
            "reports": int(output.metrics["reports"]),
            "nonfinite": int(output.metrics["nonfinite"]),
            "released": bool(output.metrics["released"]),
            "central_epsilon": finite_or_none(epsilon.result()),
            "delta": self.plan.privacy.delta,
        }
        if self.plan.privacy.adaptive_clipping:
            record["clip_norm"] = float(output.metrics["clip_norm"])
        last = number == self.plan.server.rounds
        if self.evaluator and (last or number % self.plan.simulation.evaluate_every == 0):
            _set_weights(self.process, output.state, self.model)
            figures = self.evaluator.evaluate()
            record |= {"accuracy": figures.accuracy, "loss": figures.loss}
        return output.state, record

    def _release(self, state: Any, number: int) -> None:
        """Writes what somebody may take from the folder, then the checkpoint."""
        _set_weights(self.process, state, self.model)
        self.ledger.write_card()
        save_keras_atomically(self.model, self.folder.model_file)
        whole = state
        if self.states:
            self.states.save(number)
            whole = (state, self.states.places)
        save_checkpoint(self.folder.checkpoints, whole, round_number=number)


def _set_weights(process: tff.learning.templates.LearningProcess, state: Any, model: Any) -> None:
    process.get_model_weights(state).assign_weights_to(model)


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
