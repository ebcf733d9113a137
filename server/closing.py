"""Closing a round: a small state machine in the store, every step of it repeatable.

    open ──charge──▶ charged ──compute──▶ computed ──publish──▶ released
      └──abort──▶ aborted

Killed anywhere, `Closing.advance` goes on from the state in the store:
  * the ledger's row and `charged` are one transaction: charged exactly once,
    and before anything of the round's model exists outside memory;
  * a model becomes the round's when `computed` names its blob; one computed
    before a crash and not named is deleted, never shown, and computed anew;
  * publishing overwrites files with the same content until `released` says so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from server import aggregation, checkpoints, optimizer
from server.adapting import clip_norm_after, clip_norm_after_sum
from server.blobs import BlobStore, Float64
from server.budget import Budget
from server.evaluation import Evaluator
from server.noise import draw_noise, memory_rows
from server.rounds import (
    ABORTED,
    CHARGED,
    COMPUTED,
    RELEASED,
    Round,
    lets_one_displace_another,
)
from server.store import Computed, Store
from server.task_folder import ServedTask
from tf_dpfl.protocol.checks import finite_or_none
from tf_dpfl.protocol.clip_count import report_size
from tf_dpfl.protocol.errors import BudgetError
from tf_dpfl.protocol.tensors import vector_from_bytes, vector_to_bytes

# Points at which a crash is injected by tests, in order.
STEPS = (
    "closing",
    "charged",
    "blobs written",
    "computed",
    "card written",
    "checkpoint written",
    "latest written",
    "metrics written",
    "released",
    "aborted",
)


@dataclass(frozen=True)
class Outcome:
    """How a round ended: `released` with its metrics, or aborted with a reason."""

    round_number: int
    released: bool
    reports: int
    reason: str
    result: Mapping[str, Any]


@dataclass(frozen=True)
class Closing:
    """Closes rounds of one task; `on_step` is called after each named step."""

    state: Path
    task: ServedTask
    store: Store
    blobs: BlobStore
    budget: Budget
    evaluator: Evaluator | None
    clock: Callable[[], float]
    on_step: Callable[[str], None] = lambda _name: None

    def settle(
        self, round_: Round, *, invited: int, reports_per_round: int | None, reason: str
    ) -> Outcome:
        """Charges or aborts an open round, and carries it to its end.

        The durable count of reports decides, not what was counted in memory;
        an update that arrives in between makes it decide again.
        """
        self.on_step("closing")
        while True:
            reports = len(self.store.report_digests(round_.number))
            if reports < self.task.manifest.plan.privacy.smallest_cohort:
                outcome = self._abort(round_, reports, reason, ends_task=False)
                if outcome is not None:
                    return outcome
                continue
            charges = self.store.charges()
            cost = self.budget.round_cost(
                charges,
                round_number=round_.number,
                lets_one_displace_another=lets_one_displace_another(
                    invited=invited, reported=reports, reports_per_round=reports_per_round
                ),
            )
            try:
                self.budget.epsilon_after(charges, cost)
            except BudgetError as error:
                outcome = self._abort(round_, reports, str(error), ends_task=True)
                if outcome is not None:
                    return outcome
                continue
            if self.store.charge(round_.number, reports=reports, mechanism=cost.to_json()):
                self.on_step("charged")
                return self.advance(round_.number)

    def advance(self, number: int) -> Outcome:
        """Carries a charged round to `released`, from wherever a crash left it."""
        round_ = self.store.round(number)
        if round_ is not None and round_.state == CHARGED:
            self.store.record_computed(number, self._compute(round_))
            self.on_step("computed")
            round_ = self.store.round(number)
        if round_ is not None and round_.state == COMPUTED:
            self._publish(round_)
            round_ = self.store.round(number)
        if round_ is None or round_.state != RELEASED:
            raise ValueError(f"round {number} cannot be advanced from {round_}")
        result = self.store.computed(number).result
        return Outcome(number, True, int(result["reports"]), str(result["closed_by"]), result)

    def _abort(
        self, round_: Round, reports: int, reason: str, *, ends_task: bool
    ) -> Outcome | None:
        """The aborted round; None when an update arrived in between."""
        number = round_.number
        if not self.store.abort(number, reports=reports, reason=reason, ends_task=ends_task):
            return None
        self.on_step(ABORTED)
        return Outcome(number, False, reports, reason, {})

    def _compute(self, round_: Round) -> Computed:
        """The next model in blobs: sum, server noise, average, optimizer, score."""
        plan, layout = self.task.manifest.plan, self.task.manifest.layout
        partials = self.store.partials(round_.number)
        reported = aggregation.total(self.blobs, partials, size=self._report_size)
        sum_ = reported[: layout.size]
        clip_norm = self.current_clip_norm()
        remembered = None
        if plan.privacy.noise == "server":
            drawn = draw_noise(
                plan,
                size=layout.size,
                round_index=round_.model_version + 1,
                memory=self._noise_memory(),
                clip_norm=clip_norm,
            )
            sum_ += drawn.noise
            remembered = drawn.memory
        average = sum_ / plan.clients.clients_per_round
        before, state = self._model_and_state()
        state, weights = optimizer.apply(
            plan.server,
            state,
            weights=vector_from_bytes(before, size=layout.size),
            average=average,
        )
        computed = Computed(
            weights_blob=self.blobs.put(vector_to_bytes(weights)),
            optimizer_blob=self.blobs.put_vector(state.slots.ravel()),
            noise_blob=None if remembered is None else self.blobs.put_vector(remembered.ravel()),
            next_clip_norm=None
            if clip_norm is None
            else clip_norm_after_sum(plan, clip_norm, unclipped=float(reported[-1])),
            result=self._result(round_, sum(p.reports for p in partials), weights, clip_norm),
        )
        self.on_step("blobs written")
        return computed

    def _noise_memory(self) -> Float64 | None:
        """What the noise of the newest released round left to remember, [k, d]."""
        last = self.store.last_released()
        if last is None or last.noise_blob is None:
            return None
        size = self.task.manifest.layout.size
        rows = memory_rows(self.task.manifest.plan, round_index=int(last.result["round"]))
        return self.blobs.get_vector(last.noise_blob, size=rows * size).reshape(rows, size)

    def _result(
        self, round_: Round, reports: int, weights: Any, clip_norm: float | None
    ) -> dict[str, Any]:
        """The round's line of metrics.jsonl."""
        manifest = self.task.manifest
        privacy = manifest.plan.privacy
        epsilon = self.budget.epsilon_of(self.store.charges())
        now = self.clock()
        finite = bool(np.isfinite(weights).all())
        score = self.evaluator.score(weights) if self.evaluator and finite else None
        return {
            "round": round_.model_version + 1,
            "round_number": round_.number,
            "reports": reports,
            "closed_by": "deadline" if now >= round_.deadline_s else "target",
            "accuracy": None if score is None else score.accuracy,
            "loss": None if score is None else finite_or_none(score.loss),
            "central_epsilon": finite_or_none(epsilon),
            "delta": privacy.delta,
            "unit": privacy.unit,
            "sampling": manifest.plan.clients.sampling,
            "bytes_received": reports * 4 * self._report_size,
            "bytes_per_update": 4 * self._report_size,
            "seconds": round(max(0.0, now - round_.opened_at_s), 3),
            **({} if clip_norm is None else {"clip_norm": clip_norm}),
        }

    def _publish(self, round_: Round) -> None:
        """Card first, then the model: a statement never says less than was released."""
        released = round_.model_version + 1
        weights = self.blobs.get(self.store.computed(round_.number).weights_blob)
        self.write_card()
        self.on_step("card written")
        checkpoints.write_checkpoint(self.state, released_rounds=released, weights=weights)
        self.on_step("checkpoint written")
        checkpoints.write_latest(self.state, released_rounds=released, weights=weights)
        self.on_step("latest written")
        checkpoints.write_metrics(self.state, self.store.results())
        self.on_step("metrics written")
        rounds = self.task.manifest.plan.server.rounds
        ends_task = f"all {rounds} rounds are released" if released >= rounds else None
        self.store.record_released(round_.number, ends_task=ends_task)
        self.on_step("released")

    def publish_again(self) -> None:
        """Writes the files of the newest released model, which somebody removed."""
        released, weights = self.store.released_rounds(), self.current_weights()
        self.write_card()
        checkpoints.write_checkpoint(self.state, released_rounds=released, weights=weights)
        checkpoints.write_latest(self.state, released_rounds=released, weights=weights)
        checkpoints.write_metrics(self.state, self.store.results()[:released])

    def write_card(self) -> None:
        """Writes privacy.json over every charged round."""
        card = self.budget.card(self.store.charges())
        checkpoints.write_json(self.state / "privacy.json", card.to_json())

    def current_weights(self) -> bytes:
        """The newest released model, or the task's initial one."""
        return self._model_and_state()[0]

    def current_clip_norm(self) -> float | None:
        """That of rounds over the newest released model, where it adapts."""
        return clip_norm_after(self.task.manifest.plan, self.store.last_released())

    @property
    def _report_size(self) -> int:
        """How many numbers a report has."""
        manifest = self.task.manifest
        return report_size(manifest.plan, weights=manifest.layout.size)

    def _model_and_state(self) -> tuple[bytes, optimizer.OptimizerState]:
        settings, size = self.task.manifest.plan.server, self.task.manifest.layout.size
        last = self.store.last_released()
        if last is None:
            return self.task.initial_weights, optimizer.initial_state(settings, size=size)
        slots = self.blobs.get_vector(
            last.optimizer_blob, size=optimizer.SLOTS[settings.optimizer] * size
        )
        state = optimizer.state_from_vector(
            settings, slots, size=size, steps=int(last.result["round"])
        )
        return self.blobs.get(last.weights_blob), state
