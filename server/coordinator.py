"""The coordinator: one task's life, from enrolments over rounds to its end."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from server import admission, enrolments, refusals
from server.aggregation import CLOSED, CONFLICT, COUNTED, Upload, fold
from server.closing import Closing, Outcome
from server.events import Reporter
from server.folding import Folding, cancel
from server.rounds import (
    ABORTED,
    OPEN,
    Policy,
    Round,
    Verdict,
    is_invited,
    judge,
)
from server.separation import draw_cohort, enforced_separation
from tf_dpfl.protocol import signing, wire
from tf_dpfl.protocol.errors import BudgetError, TaskError, WireError
from tf_dpfl.protocol.files import sha256_hex

# Pause after a draw that invited too few, doubled up to a limit: a population
# too small for its smallest cohort must not spin.
_FIRST_REDRAW_PAUSE_S = 0.05
_LONGEST_REDRAW_PAUSE_S = 5.0
# Check-ins a second the polling interval aims at when very many are enrolled.
_MOST_CHECKINS_PER_S = 500.0


@dataclass(frozen=True)
class OpenRound:
    """The open round as devices see it; replaced, never changed, as things arrive."""

    round: Round
    invited: frozenset[str]
    reported: frozenset[str]

    def with_invited(self, device_id: str) -> OpenRound:
        """The same round after a drawn device enrolled."""
        return OpenRound(self.round, self.invited | {device_id}, self.reported)

    def with_reports(self, device_ids: set[str]) -> OpenRound:
        """The same round with more devices counted."""
        return OpenRound(self.round, self.invited, self.reported | device_ids)


class Coordinator:
    """Runs one task's rounds. All attributes belong to the event loop's thread.

    Writes go through one thread, `_writer`, so that folds never wait on each
    other; closing a round has a thread of its own. The store's transactions
    keep the two apart.
    """

    def __init__(self, closing: Closing, policy: Policy, reporter: Reporter, *, poll_s: float):
        self._closing = closing
        self._store = closing.store
        self._policy = policy
        self._reporter = reporter
        self._poll_s = poll_s
        self._clock = closing.clock
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="writer")
        self._closer = ThreadPoolExecutor(1, thread_name_prefix="closer")
        self._folding = Folding(self._fold, counted=self._counted)
        self._changed = asyncio.Event()
        self._keys: dict[str, Ed25519PublicKey] = {
            device: signing.parse_public_key(key)
            for device, key in enrolments.device_keys(self._store).items()
        }
        self.manifest = closing.task.manifest
        self.task = closing.task
        self.open: OpenRound | None = None
        self.released_rounds = self._store.released_rounds()
        self.ended = self._store.ended()
        self.results = self._store.results()[: self.released_rounds]
        self.weights = closing.current_weights()
        self.weights_sha256 = sha256_hex(self.weights)
        self.clip_norm = closing.current_clip_norm()
        self.told_done: set[str] = set()

    # What the HTTP layer asks ---------------------------------------------

    def key_of(self, device_id: str) -> Ed25519PublicKey | None:
        """The enrolled device's key."""
        return self._keys.get(device_id)

    @property
    def enrolled(self) -> int:
        """Number of enrolled devices."""
        return len(self._keys)

    @property
    def state(self) -> str:
        """`done`, `open` (a round takes updates) or `waiting`."""
        if self.ended is not None:
            return "done"
        return "waiting" if self.open is None else "open"

    async def enroll(self, request: wire.Enrollment) -> str:
        """Enrols a device; returns its id. Raises WireError when it is refused."""
        key = admission.check_public_key(request.public_key)
        device_id = admission.device_id_of(request.public_key)
        await self._in_writer(
            lambda: enrolments.enroll(
                self._store,
                token_digest=admission.token_digest(request.token),
                device_id=device_id,
                public_key=request.public_key,
                population=self.manifest.plan.clients.population,
            )
        )
        self._keys[device_id] = key
        if self.open is not None and is_invited(self.open.round, device_id, self.manifest.plan):
            self.open = self.open.with_invited(device_id)
        self._changed.set()
        return device_id

    def checkin(self, device_id: str) -> wire.Checkin:
        """What the device shall do now."""
        if self.ended is not None:
            self.told_done.add(device_id)
            return wire.Checkin("done")
        current = self.open
        if current is not None and device_id in current.invited:
            left_s = current.round.deadline_s - self._clock()
            if left_s > 0 and device_id not in current.reported:
                return wire.Checkin(
                    "train",
                    round_number=current.round.number,
                    weights_sha256=self.weights_sha256,
                    closes_in_s=left_s,
                    clip_norm=self.clip_norm,
                )
        retry_s = max(self._poll_s, self.enrolled / _MOST_CHECKINS_PER_S)
        return wire.Checkin("wait", retry_after_s=retry_s)

    async def weights_for(self, device_id: str, number: int) -> bytes:
        """The weights round `number` starts from. Raises WireError 403, 404 or 410."""
        await self._admitted(device_id, number)
        return self.weights

    async def expects_update(self, device_id: str, number: int, digest: str) -> bool:
        """Whether the body is wanted; False when these bytes were counted before.

        Raises WireError 403, 404, 409 or 410 before a byte of the body is read.
        """
        current = self.open
        is_open = current is not None and current.round.number == number
        if is_open and current is not None and device_id not in current.reported:
            kept = None  # one still on its way is met in the fold
        else:
            kept = await self._in_writer(lambda: self._store.report_digest(number, device_id))
        if kept is not None:
            round_ = await self._in_writer(lambda: self._store.round(number))
            if round_ is not None and round_.state == ABORTED:
                raise refusals.closed(number)
            if kept != digest:
                raise refusals.conflict(number)
            return False
        await self._admitted(device_id, number)
        return True

    async def submit(self, number: int, upload: Upload) -> bool:
        """Adds a checked update; True when it was new, False when repeated.

        Returns after it is durable. Raises WireError 409 or 410.
        """
        outcome = await self._folding.submit(number, upload)
        if outcome == CONFLICT:
            raise refusals.conflict(number)
        if outcome == CLOSED:
            raise refusals.closed(number)
        return outcome == COUNTED

    async def _admitted(self, device_id: str, number: int) -> None:
        """Raises WireError unless the device is invited to this round and it is open."""
        current = self.open
        if current is None or current.round.number != number:
            round_ = await self._in_writer(lambda: self._store.round(number))
            if round_ is None:
                raise WireError(f"round {number} does not exist; check in again", status=404)
            if not is_invited(round_, device_id, self.manifest.plan):
                raise refusals.not_invited(device_id, number)
            raise refusals.closed(number)
        if device_id not in current.invited:
            raise refusals.not_invited(device_id, number)
        if current.round.deadline_s <= self._clock():
            raise refusals.closed(number)

    # The task's life -------------------------------------------------------

    async def run(self, stop: asyncio.Event) -> None:
        """Runs rounds until `stop` is set, past the task's end: repeats are still answered.

        Raises what ended the task's life by accident. Updates are folded until
        `close`.
        """
        self._folding.start()
        stopped = asyncio.create_task(stop.wait())
        life = asyncio.create_task(self._live())
        try:
            await asyncio.wait({stopped, life}, return_when=asyncio.FIRST_COMPLETED)
            if life.done() or self.ended is not None:  # an end is told, however soon it is known
                await life
                await stopped
        finally:
            await cancel(life)
            await cancel(stopped)

    async def close(self) -> None:
        """Ends the folding and waits for what runs in threads; nothing is half done."""
        await self._folding.close()
        await asyncio.to_thread(self._closer.shutdown)
        await asyncio.to_thread(self._writer.shutdown)

    async def _live(self) -> None:
        unfinished = await self._in_writer(self._store.unfinished_round)
        pause_s = _FIRST_REDRAW_PAUSE_S
        while self.ended is None:
            if unfinished is not None and unfinished.state != OPEN:
                advance = partial(self._closing.advance, unfinished.number)
                await self._finish(await self._in_closer(advance))
                unfinished = None
                continue
            if unfinished is None:
                if not await self._may_open():
                    break
                unfinished = await self._in_writer(self._open_round)
            released = await self._keep_open(unfinished)
            unfinished = None
            if released:
                pause_s = _FIRST_REDRAW_PAUSE_S
            else:
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, _LONGEST_REDRAW_PAUSE_S)
        self._reporter.emit("done", reason=self.ended, released_rounds=self.released_rounds)

    async def _may_open(self) -> bool:
        """Waits for devices; False when the task has ended instead."""
        needed = self._policy.start_when
        reason = await self._in_closer(self._reason_to_end)
        if reason is None and self.enrolled < needed:
            self._reporter.emit("waiting", enrolled=self.enrolled, needed=needed)
            while self.enrolled < needed:
                await self._changed_or(None)
            reason = await self._in_closer(self._reason_to_end)
        if reason is None:
            return True
        await self._in_writer(lambda: self._store.end_task(reason))
        self.ended = reason
        return False

    def _reason_to_end(self) -> str | None:
        """Why no further round may be opened: nobody shall train in vain."""
        if self.released_rounds >= self.manifest.plan.server.rounds:
            return f"all {self.released_rounds} rounds are released"
        try:
            self.manifest.check_validity(self._clock())
            budget = self._closing.budget
            charges = self._store.charges()
            cost = budget.round_cost(
                charges,
                round_number=self._store.last_round_number() + 1,
                lets_one_displace_another=False,
            )
            budget.epsilon_after(charges, cost)
        except (BudgetError, TaskError) as error:
            return str(error)
        return None

    def _open_round(self) -> Round:
        now = self._clock()
        round_ = Round(
            number=self._store.last_round_number() + 1,
            model_version=self.released_rounds,
            state=OPEN,
            secret=os.urandom(32),
            drawn=draw_cohort(self.manifest.plan, self._store, model_version=self.released_rounds),
            opened_at_s=now,
            deadline_s=now + self._policy.round_deadline_s,
            reports_per_round=self._policy.reports_per_round,
        )
        self._store.open_round(round_)
        self._closing.on_step("opened")
        return round_

    async def _keep_open(self, round_: Round) -> bool:
        """Takes updates until the round closes; returns whether it was released."""
        plan = self.manifest.plan
        reported = await self._in_writer(lambda: self._store.report_digests(round_.number))
        invited = frozenset(d for d in self._keys if is_invited(round_, d, plan))
        self.open = OpenRound(round_, invited, frozenset(reported))
        self._reporter.emit(
            "round_opened",
            round_number=round_.number,
            round=round_.model_version + 1,
            invited=len(invited),
            closes_in_s=round(max(0.0, round_.deadline_s - self._clock()), 3),
        )
        while True:
            left_s = round_.deadline_s - self._clock()
            verdict = self._judge(self.open, deadline_passed=left_s <= 0)
            if verdict.action != "wait":
                break
            await self._changed_or(left_s)
        current, self.open = self.open, None
        outcome: Outcome = await self._in_closer(
            lambda: self._closing.settle(
                round_,
                invited=len(current.invited),
                reports_per_round=round_.reports_per_round,
                reason=verdict.reason,
            )
        )
        await self._finish(outcome)
        return outcome.released

    def _judge(self, current: OpenRound, *, deadline_passed: bool) -> Verdict:
        return judge(
            invited=current.invited,
            reported=current.reported,
            smallest_cohort=self.manifest.plan.privacy.smallest_cohort,
            reports_per_round=current.round.reports_per_round,
            deadline_passed=deadline_passed,
        )

    async def _finish(self, outcome: Outcome) -> None:
        """Takes the round's end into what devices see, and tells."""
        self.ended = await self._in_writer(self._store.ended)
        if outcome.released:
            self.weights = await self._in_writer(self._closing.current_weights)
            self.weights_sha256 = sha256_hex(self.weights)
            self.clip_norm = await self._in_writer(self._closing.current_clip_norm)
            self.released_rounds = int(outcome.result["round"])
            self.results = [*self.results, dict(outcome.result)]
            self._reporter.emit("round", **outcome.result)
        else:
            self._reporter.emit(
                "aborted",
                round_number=outcome.round_number,
                reports=outcome.reports,
                reason=outcome.reason,
            )
        await self._in_writer(self._drop_unused_blobs)

    def _drop_unused_blobs(self) -> None:
        """Runs in the writer's thread: no fold is between its blob and its commit."""
        self._closing.blobs.delete_all_but(self._store.blobs_in_use())

    def _counted(self, number: int, device_ids: set[str]) -> None:
        """Takes durable reports into what devices see."""
        if self.open is not None and self.open.round.number == number:
            self.open = self.open.with_reports(device_ids)
        self._changed.set()

    async def _fold(self, number: int, uploads: Sequence[Upload]) -> list[str]:
        current = self.open
        is_open = current is not None and current.round.number == number
        opened_by = current.round if is_open and current is not None else self._policy
        outcomes: list[str] = await self._in_writer(
            lambda: fold(
                self._store,
                self._closing.blobs,
                round_number=number,
                uploads=uploads,
                most_reports=opened_by.reports_per_round,
                separation=enforced_separation(self.manifest.plan),
            )
        )
        return outcomes

    async def _changed_or(self, timeout_s: float | None) -> None:
        """Waits until something arrived, at most `timeout_s`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._changed.wait()
        self._changed.clear()

    async def _in_writer(self, call: Callable[[], Any]) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._writer, call)

    async def _in_closer(self, call: Callable[[], Any]) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._closer, call)
