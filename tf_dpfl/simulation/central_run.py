"""Training on all users' records in one place, without privacy: what federation is held against.

The client computation is the one that devices run: the same loss, local optimizer and
batch size, only that the one "client" holds everybody's records, shuffled anew for each pass,
and that its optimizer goes on from beginning to end.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from tf_dpfl.client_work.computation import ClientComputation, layout_of
from tf_dpfl.client_work.faster_gradients import FASTER_GRADIENTS
from tf_dpfl.client_work.interface import interface_of
from tf_dpfl.client_work.local_training import train_locally
from tf_dpfl.data.columns import FederatedData, scaled
from tf_dpfl.protocol.examples import fitted
from tf_dpfl.protocol.interface import TARGET
from tf_dpfl.protocol.plan import Clients, Plan
from tf_dpfl.simulation.checkpoints import load_newest_checkpoint, save_checkpoint
from tf_dpfl.simulation.cohort import derive_bytes
from tf_dpfl.simulation.evaluation import Evaluator
from tf_dpfl.simulation.noise import derive_seed, seeded_uniforms
from tf_dpfl.simulation.run_folder import RunFolder, save_keras_atomically
from tf_dpfl.simulation.simulate import EventSink

# Records that go into TensorFlow at once: bounds memory, and changes no result.
_RECORDS_AT_ONCE = 8192


@dataclass(frozen=True)
class CentralSchedule:
    """How the records are gone through: as often as the plan's users are expected to.

    Attributes:
      records: of all users, each at most `clients.examples_per_client`.
      batch_size: of one step; the last batch of a pass is smaller.
      passes_per_round: over all records in what is called a round here; sampling
        probability times local epochs.
      rounds: of the plan.
    """

    records: int
    batch_size: int
    passes_per_round: float
    rounds: int

    @property
    def passes(self) -> float:
        """Over all records, in all."""
        return self.passes_per_round * self.rounds

    @property
    def steps_per_pass(self) -> int:
        """Batches of one pass."""
        return -(-self.records // self.batch_size)

    def steps_after(self, round_number: int) -> int:
        """Steps that are done when round `round_number` ends."""
        return round(round_number * self.passes_per_round * self.steps_per_pass)

    def pieces(self, round_number: int) -> Iterator[tuple[int, slice]]:
        """The round's (pass, records of its order), in pieces that fit into memory."""
        step, end = self.steps_after(round_number - 1), self.steps_after(round_number)
        at_once = max(1, _RECORDS_AT_ONCE // self.batch_size)
        while step < end:
            number, first = divmod(step, self.steps_per_pass)
            steps = min(at_once, end - step, self.steps_per_pass - first)
            start = first * self.batch_size
            yield number, slice(start, min(start + steps * self.batch_size, self.records))
            step += steps


def schedule_of(plan: Plan, data: FederatedData) -> CentralSchedule:
    """The schedule that a plan's central training follows."""
    return CentralSchedule(
        records=int(np.minimum(data.counts, plan.clients.examples_per_client).sum()),
        batch_size=plan.local_training.batch_size,
        passes_per_round=plan.clients.sampling_probability * plan.local_training.epochs,
        rounds=plan.server.rounds,
    )


def rows_of_everybody(data: FederatedData, clients: Clients) -> NDArray[np.int64]:
    """Where all records lie that a federated run may use, ascending, int64 [records]."""
    within = np.arange(len(data.target)) - np.repeat(data.offsets[:-1], data.counts)
    return np.flatnonzero(within < clients.examples_per_client)


def stored_bytes(data: FederatedData, plan: Plan) -> int:
    """What all users' records take, as they are stored: what is brought to one place."""
    columns = (*data.inputs.values(), data.target)
    per_record = sum(column.dtype.itemsize * math.prod(column.shape[1:]) for column in columns)
    return schedule_of(plan, data).records * per_record


def run_centrally(
    plan: Plan, folder: RunFolder, model: tf.keras.Model, data: FederatedData, emit: EventSink
) -> None:
    """Trains `model`, and goes on where an earlier call stopped.

    Writes `metrics.jsonl` (one line for each round's worth of records), `checkpoints/` and
    `model.keras`. There is no card: nothing is private.

    Args:
      plan: its training, its rounds, and how often to evaluate and to write checkpoints.
      folder: of this run; its seed orders the records.
      model: with the initial weights; it is changed.
      data: with a test split.
      emit: called with {"event": "round", ...} after each round.
    """
    data = data.fitted(interface_of(model, plan.local_training))
    training = _Training(plan, folder.seed, model, data)
    evaluator = Evaluator(model, data, plan.local_training)
    folder.path.mkdir(parents=True, exist_ok=True)
    found = load_newest_checkpoint(folder.checkpoints, training.state())
    done = 0
    if found is not None:
        done, state = found
        training.go_on_from(state)
    folder.keep_metrics_until(done)
    rounds, every = plan.server.rounds, plan.simulation
    for number in range(done + 1, rounds + 1):
        began = time.monotonic()
        record: dict[str, Any] = {"round": number, "examples": training.round(number)}
        if number == rounds or number % every.evaluate_every == 0:
            figures = evaluator.evaluate()
            record |= {"accuracy": figures.accuracy, "loss": figures.loss}
        record["seconds"] = round(time.monotonic() - began, 4)
        folder.append_metrics(record)
        emit({"event": "round", "rounds": rounds, **record})
        if number == rounds or number % every.checkpoint_every == 0:
            save_keras_atomically(model, folder.model_file)
            save_checkpoint(folder.checkpoints, training.state(), round_number=number)


class _Training:
    """The graphs, and the order of the records."""

    def __init__(self, plan: Plan, seed: bytes, model: tf.keras.Model, data: FederatedData):
        # Nothing to stay close to, and no rounds for the optimizer to start anew in.
        settings = replace(plan.local_training, epochs=1, proximal=0.0, optimizer_state="reset")
        self._data, self._seed = data, seed
        self._schedule = schedule_of(plan, data)
        self._rows = rows_of_everybody(data, plan.clients)
        self._computation = ClientComputation(model, settings, op_gradients=FASTER_GRADIENTS)
        self._model = model
        kept = replace(settings, optimizer_state="keep")
        self._has_state = kept.kept_values(weights=layout_of(model).size) > 0
        self._order: tuple[int, NDArray[np.int64]] | None = None
        interface = self._computation.interface
        specs = {t.name: tf.TensorSpec([None, *t.shape], t.dtype) for t in interface.tensors}
        shape = [settings.batch_size, interface.random_values]

        def train(examples: Mapping[str, tf.Tensor], count: tf.Tensor, seed: tf.Tensor) -> None:
            def random(step: tf.Tensor) -> tf.Tensor:
                return seeded_uniforms(derive_seed(seed, tf.cast(step, tf.int64)), shape=shape)

            train_locally(
                self._computation,
                examples,
                count,
                settings=settings,
                random=random if interface.random_values else None,
            )

        self._train = tf.function(
            train,
            input_signature=[specs, tf.TensorSpec([], tf.int32), tf.TensorSpec([2], tf.int64)],
            autograph=False,
        )
        self._get_state = tf.function(self._computation.get_optimizer_state, autograph=False)
        self._set_state = tf.function(self._computation.set_optimizer_state, autograph=False)

    def round(self, number: int) -> int:
        """Trains what belongs to round `number`; how many records that was."""
        examples = 0
        for index, (number_of_pass, piece) in enumerate(self._schedule.pieces(number)):
            rows = self._rows[self._order_of(number_of_pass)[piece]]
            batch = self._records(rows)
            count = len(rows)
            padding = -count % self._schedule.batch_size
            padded = {
                name: np.pad(values, [(0, padding)] + [(0, 0)] * (values.ndim - 1))
                for name, values in batch.items()
            }
            seed = derive_bytes(self._seed, f"random layers {number} {index}")[:16]
            self._train(padded, tf.constant(count), tf.constant(np.frombuffer(seed, np.int64)))
            examples += count
        return examples

    def state(self) -> Any:
        """What a checkpoint holds: the model's weights and the optimizer's state."""
        state = self._get_state().numpy() if self._has_state else np.zeros(0, np.float32)
        return [[variable.numpy() for variable in self._model.variables], state]

    def go_on_from(self, state: Any) -> None:
        """Takes what `state` gave."""
        weights, optimizer = state
        for variable, value in zip(self._model.variables, weights):
            variable.assign(value)
        if self._has_state:
            self._set_state(tf.constant(optimizer))

    def _order_of(self, number: int) -> NDArray[np.int64]:
        """The order of all records in one pass."""
        if self._order is None or self._order[0] != number:
            seed = int.from_bytes(derive_bytes(self._seed, f"pass {number}"), "little")
            order = np.random.default_rng(seed).permutation(self._schedule.records)
            self._order = (number, order)
        return self._order[1]

    def _records(self, rows: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        columns = {
            name: scaled(column[rows], self._data.feature_scale)
            for name, column in self._data.inputs.items()
        }
        columns[TARGET] = np.asarray(self._data.target[rows])
        return fitted(columns, self._computation.interface, where="the users' examples")
