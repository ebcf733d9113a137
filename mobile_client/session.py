"""One device's way through a task, as steps: (session, rim) -> (session, progress).

A session is what the state folder says; a step does one thing, makes it durable
and returns. So a kill between or inside steps loses nothing: the next process
loads the session from the folder and goes on.

    join -> enrol -> fetch client -> check in -> train -> charge -> deliver
                                        ^                              |
                                        +------------------------------+

`train` leaves the report in the outbox, `charge` puts it into the ledger,
`deliver` sends the outbox's bytes until the server has settled them. Nothing
is ever trained for a round that stands in the ledger or in the outbox.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from mobile_client.ledger import CHARGED, DROPPED, SENT, DeviceLedger
from mobile_client.limits import Limits
from mobile_client.reports import make_report
from mobile_client.state import Binding, StateFolder
from mobile_client.trainer import TrainerCache
from mobile_client.transport import Link, Refused, Unreachable
from tf_dpfl.protocol.checks import finite_or_none
from tf_dpfl.protocol.clip_norms import clip_norm_of_round
from tf_dpfl.protocol.errors import StateError, TaskError, WireError
from tf_dpfl.protocol.examples import read_examples
from tf_dpfl.protocol.files import sha256_hex
from tf_dpfl.protocol.local_privacy import local_epsilon, require_asked_local_epsilon
from tf_dpfl.protocol.manifest import CLIENT_FILE, Manifest, verify_manifest
from tf_dpfl.protocol.tensors import Float32, vector_from_bytes, vector_to_bytes
from tf_dpfl.protocol.wire import Checkin

# Answers that end one round for this device and nothing else (docs/wire.md).
_ROUND_IS_OVER = (403, 404, 409, 410, 422)

FIRST_BACKOFF_S = 0.5
LONGEST_BACKOFF_S = 60.0
SHORTEST_POLL_S = 0.1
LONGEST_POLL_S = 600.0
# After an answer that sends the device back to check-in without saying when.
_CHECK_IN_AGAIN_S = 1.0


@dataclass(frozen=True)
class Settings:
    """What the owner decided. `task_key` (hex) is the author's, known beforehand."""

    task_key: str
    data: Path
    token: str = ""
    limits: Limits = field(default_factory=Limits)
    patience_s: float = 600.0


@dataclass(frozen=True)
class Rim:
    """Everything outside a session: folder, network, interpreter, entropy, clocks."""

    settings: Settings
    folder: StateFolder
    link: Link
    trainers: TrainerCache
    random_bytes: Callable[[int], bytes] = os.urandom
    now_s: Callable[[], float] = time.time
    monotonic_s: Callable[[], float] = time.monotonic
    jitter: Callable[[], float] = random.random


@dataclass(frozen=True)
class Session:
    """Where a device stands. `outbox` lists rounds whose report is not settled."""

    binding: Binding | None = None
    manifest: Manifest | None = None
    has_client: bool = False
    ledger: DeviceLedger = field(default_factory=DeviceLedger)
    outbox: tuple[int, ...] = ()
    failures: int = 0
    failing_since_s: float = 0.0

    @property
    def local_epsilon(self) -> float:
        """Epsilon of every report charged so far against whoever sees them singly."""
        if self.manifest is None:
            return 0.0
        return local_epsilon(self.manifest.plan, reports=self.ledger.count)


@dataclass(frozen=True)
class Progress:
    """What a step did, and how long to wait before the next one."""

    event: str
    detail: Mapping[str, Any] = field(default_factory=dict)
    wait_s: float = 0.0
    ended: bool = False


def load_session(folder: StateFolder) -> Session:
    """The session a locked folder holds, with settled reports tidied away."""
    binding = folder.load_binding()
    if binding is None:
        return Session()
    ledger = folder.load_ledger()
    outbox = folder.outbox_rounds()
    for report in ledger.reports:
        kept = report.round_number in outbox
        if report.outcome != CHARGED and kept:
            folder.remove_report(report.round_number)
            outbox.remove(report.round_number)
        elif report.outcome == CHARGED and not kept:
            # Its bytes are gone: making others could send a second update.
            ledger = ledger.close(round_number=report.round_number, outcome=DROPPED)
            folder.save_ledger(ledger)
    return Session(binding=binding, ledger=ledger, outbox=tuple(outbox))


def step(session: Session, rim: Rim) -> tuple[Session, Progress]:
    """Does the next thing; a server that cannot be reached is a step too.

    Raises:
      TaskError, WireError, StateError, DataError: the task, the server's answer,
        the folder or the data is not usable.
      BudgetError: this device's own limits forbid the next thing.
    """
    try:
        session, progress = _next_step(session)(session, rim)
    except Unreachable as error:
        return _after_failure(session, rim, error)
    return replace(session, failures=0), progress


_Step = Callable[[Session, Rim], "tuple[Session, Progress]"]


def _next_step(session: Session) -> _Step:
    if session.binding is None or session.manifest is None:
        return _join
    if not session.binding.enrolled:
        return _enrol
    if not session.has_client:
        return _fetch_client
    if session.outbox:
        charged = session.ledger.find(session.outbox[0]) is not None
        return _deliver if charged else _charge
    return _take_part


def _after_failure(session: Session, rim: Rim, error: Unreachable) -> tuple[Session, Progress]:
    """Exponential backoff with jitter; raises `error` when patience is at its end."""
    now = rim.monotonic_s()
    since = session.failing_since_s if session.failures else now
    if not now - since <= rim.settings.patience_s:
        raise error
    backoff = min(FIRST_BACKOFF_S * 2.0 ** min(session.failures, 30), LONGEST_BACKOFF_S)
    wait_s = max(backoff * (0.5 + rim.jitter()), min(error.retry_after_s, LONGEST_POLL_S))
    session = replace(session, failures=session.failures + 1, failing_since_s=since)
    return session, Progress("retry", {"reason": str(error)}, wait_s=wait_s)


def _join(session: Session, rim: Rim) -> tuple[Session, Progress]:
    """Fetches and verifies the task; gives a fresh folder to it."""
    settings = rim.settings
    raw, signature = rim.link.fetch_task()
    manifest = verify_manifest(raw, signature, public_key=settings.task_key)
    manifest.check_validity(rim.now_s())
    require_asked_local_epsilon(manifest.plan)
    binding = session.binding
    if binding is not None:
        _check_same_task(rim.folder, binding, manifest, raw)
    settings.limits.check_task(manifest)
    if binding is None or not binding.enrolled:
        # Who may never report must not take one of the population's places.
        settings.limits.check_reports(manifest.plan, reports=1)
    _read_data(rim, manifest)
    if binding is None:
        binding = rim.folder.bind(manifest, raw)
    privacy = manifest.plan.privacy
    detail = {
        "task_id": manifest.task_id,
        "unit": privacy.unit,
        "noise": privacy.noise,
        "noise_multiplier": privacy.calibrated_noise_multiplier,
        "clipping": privacy.clipping,
        "clip_norm": privacy.clip_norm,
        "adaptive_clipping": privacy.adaptive_clipping,
        "delta": privacy.delta,
        "local_epsilon_of_one_report": finite_or_none(local_epsilon(manifest.plan, reports=1)),
        "central_epsilon_claimed": manifest.central_epsilon,
    }
    return replace(session, binding=binding, manifest=manifest), Progress("task", detail)


def _check_same_task(folder: StateFolder, binding: Binding, manifest: Manifest, raw: bytes) -> None:
    if manifest.task_id != binding.task_id:
        raise StateError(
            f"{folder.path}: belongs to task {binding.task_id}, the server runs "
            f"{manifest.task_id}; use a --state of its own for each task"
        )
    if sha256_hex(raw) != binding.manifest_sha256:
        raise StateError(
            f"{folder.path}: task {binding.task_id} was signed again with other content than "
            "the one joined; this device's ledger would not hold for it"
        )


def _enrol(session: Session, rim: Rim) -> tuple[Session, Progress]:
    """Makes this device's key known to the server with the one-time token."""
    if session.binding is None:
        raise StateError(f"{rim.folder.path}: not bound to a task yet")
    if not rim.settings.token:
        raise WireError("this device is not enrolled yet; give its one-time --token")
    rim.link.enroll(rim.settings.token)
    binding = rim.folder.mark_enrolled(session.binding)
    return replace(session, binding=binding), Progress(
        "enrolled", {"device_id": rim.link.device_id}
    )


def _fetch_client(session: Session, rim: Rim) -> tuple[Session, Progress]:
    """Makes sure that the folder holds the manifest's client file."""
    manifest = _manifest(session)
    digest = manifest.files[CLIENT_FILE]
    model = rim.folder.load_client()
    if model is None or len(model) != digest.size or sha256_hex(model) != digest.sha256:
        model = rim.link.fetch_client(task_id=manifest.task_id, size=digest.size)
        digest.check(CLIENT_FILE, model)
        rim.folder.save_client(model)
    return replace(session, has_client=True), Progress("ready", {"client_bytes": digest.size})


def _take_part(session: Session, rim: Rim) -> tuple[Session, Progress]:
    """Checks in; when invited and allowed by the own limits, trains."""
    manifest = _manifest(session)
    manifest.check_validity(rim.now_s())
    answer = rim.link.check_in(task_id=manifest.task_id)
    if answer.state == "done":
        return session, Progress("done", _totals(session, rim), ended=True)
    if answer.state == "wait":
        return session, Progress("wait", wait_s=_poll_s(rim, answer.retry_after_s))
    if session.ledger.find(answer.round_number) is not None:
        return session, Progress("wait", wait_s=_poll_s(rim, _CHECK_IN_AGAIN_S))
    clip_norm = clip_norm_of_round(manifest.plan, answer.clip_norm)
    rim.settings.limits.check_task(manifest)
    rim.settings.limits.check_reports(manifest.plan, reports=session.ledger.count + 1)
    try:
        weights = _fetch_weights(rim, manifest, answer)
    except Refused as error:
        if error.status not in _ROUND_IS_OVER:
            raise
        return session, Progress("wait", wait_s=_poll_s(rim, _CHECK_IN_AGAIN_S))
    report = _train(session, rim, manifest, weights, answer.round_number, clip_norm)
    rim.folder.save_report(answer.round_number, vector_to_bytes(report))
    session = replace(session, outbox=(*session.outbox, answer.round_number))
    return session, Progress("trained", {"round": answer.round_number, "clip_norm": clip_norm})


def _fetch_weights(rim: Rim, manifest: Manifest, answer: Checkin) -> Float32:
    """The round's weights after size, digest and values were checked."""
    raw = rim.link.fetch_weights(
        task_id=manifest.task_id,
        round_number=answer.round_number,
        size=manifest.layout.nbytes,
    )
    what = f"weights of round {answer.round_number}"
    if len(raw) != manifest.layout.nbytes:
        raise WireError(f"{what}: {len(raw)} bytes, this task needs {manifest.layout.nbytes}")
    if sha256_hex(raw) != answer.weights_sha256:
        raise WireError(f"{what}: their SHA-256 is not the one the check-in named")
    weights = vector_from_bytes(raw, size=manifest.layout.size)
    if not np.isfinite(weights).all():
        raise WireError(f"{what}: have NaN or infinite entries")
    return weights


def _train(
    session: Session,
    rim: Rim,
    manifest: Manifest,
    weights: Float32,
    round_number: int,
    clip_norm: float,
) -> Float32:
    """This device's report of one round; where the plan keeps it, saves the optimizer's state."""
    trainer = rim.trainers.trainer(manifest, lambda: _client_file(rim.folder))
    states, state = rim.folder.optimizer_states, None
    kept = manifest.plan.local_training.kept_values(weights=manifest.layout.size)
    if kept:
        state = states.newest([report.round_number for report in session.ledger.reports], size=kept)
    report = make_report(
        trainer,
        manifest,
        weights=weights,
        examples=_read_data(rim, manifest),
        clip_norm=clip_norm,
        optimizer_state=state,
        random_bytes=rim.random_bytes,
    )
    if state is not None:
        states.save(round_number, trainer.optimizer_state(before=state, weights=weights))
    return report


def _charge(session: Session, rim: Rim) -> tuple[Session, Progress]:
    """Charges the outbox's first report; nothing of it was sent before."""
    number = session.outbox[0]
    rim.settings.limits.check_reports(_manifest(session).plan, reports=session.ledger.count + 1)
    digest = sha256_hex(rim.folder.load_report(number))
    ledger = session.ledger.charge(round_number=number, sha256=digest)
    rim.folder.save_ledger(ledger)
    rim.folder.optimizer_states.keep_only(number)
    return replace(session, ledger=ledger), Progress("charged", {"round": number})


def _deliver(session: Session, rim: Rim) -> tuple[Session, Progress]:
    """Sends the outbox's first report, as it is, and remembers the answer."""
    number = session.outbox[0]
    manifest = _manifest(session)
    limits = rim.settings.limits
    limits.check_reports(manifest.plan, reports=session.ledger.count)
    body = rim.folder.load_report(number)
    session.ledger.charge(round_number=number, sha256=sha256_hex(body))  # the charged bytes
    detail: dict[str, Any] = {"round": number, "bytes": len(body), "outcome": SENT}
    try:
        rim.link.send_update(task_id=manifest.task_id, round_number=number, body=body)
    except Refused as error:
        if error.status not in _ROUND_IS_OVER:
            raise
        detail.update(outcome=DROPPED, reason=str(error))
    ledger = session.ledger.close(round_number=number, outcome=detail["outcome"])
    rim.folder.save_ledger(ledger)
    rim.folder.remove_report(number)
    session = replace(session, ledger=ledger, outbox=session.outbox[1:])
    detail.update(reports=ledger.count, local_epsilon=finite_or_none(session.local_epsilon))
    return session, Progress("report", detail)


def _read_data(rim: Rim, manifest: Manifest) -> Any:
    """This device's examples; at most as many as the plan allows."""
    limit = manifest.plan.clients.examples_per_client
    return read_examples(rim.settings.data, manifest.interface, limit=limit)


def _client_file(folder: StateFolder) -> bytes:
    model = folder.load_client()
    if model is None:
        raise TaskError(f"{folder.path / CLIENT_FILE}: is missing; start the device again")
    return model


def _manifest(session: Session) -> Manifest:
    if session.manifest is None:
        raise StateError("the session has not joined a task yet")
    return session.manifest


def _poll_s(rim: Rim, wished_s: float) -> float:
    """The server's wish, bounded, up to a quarter later: devices spread out."""
    bounded = min(max(wished_s, SHORTEST_POLL_S), LONGEST_POLL_S)
    return bounded * (1.0 + 0.25 * rim.jitter())


def _totals(session: Session, rim: Rim) -> dict[str, Any]:
    ledger = session.ledger
    return {
        "device_id": rim.link.device_id,
        "reports_sent": ledger.outcomes(SENT),
        "reports_dropped": ledger.outcomes(DROPPED),
        "local_epsilon": finite_or_none(session.local_epsilon),
        "bytes_up": rim.link.traffic.up,
        "bytes_down": rim.link.traffic.down,
    }
