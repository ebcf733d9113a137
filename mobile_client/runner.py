"""Driving devices through their steps: one, or many that take turns."""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mobile_client.session import Progress, Rim, Session, Settings, load_session, step
from mobile_client.state import StateFolder
from mobile_client.trainer import TrainerCache
from mobile_client.transport import Link
from tf_dpfl.protocol.errors import BudgetError, DpflError

if TYPE_CHECKING:
    import httpx

ENDED = "ended"
LIMITED = "limited"
FAILED = "failed"

# What only says that time passed.
_QUIET = frozenset({"wait"})

Emit = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True)
class DeviceConfig:
    """One device: its settings and its state folder."""

    settings: Settings
    state: Path


def open_device(
    stack: ExitStack, config: DeviceConfig, *, client: httpx.Client, trainers: TrainerCache
) -> tuple[Session, Rim]:
    """A device whose folder is locked until `stack` closes.

    Raises StateError when the folder is in use, damaged or unreadable.
    """
    folder = StateFolder(config.state)
    stack.enter_context(folder.locked())
    link = Link(client, folder.load_key())
    session = load_session(folder)
    return session, Rim(config.settings, folder, link, trainers)


def run_device(
    config: DeviceConfig,
    *,
    client: httpx.Client,
    emit: Emit,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """One device until the task ends. Raises DpflError when it cannot go on."""
    with ExitStack() as stack:
        session, rim = open_device(stack, config, client=client, trainers=TrainerCache())
        ended = False
        while not ended:
            session, progress = step(session, rim)
            _emit_progress(emit, progress)
            ended = progress.ended
            if progress.wait_s and not ended:
                sleep(progress.wait_s)


def run_devices(
    configs: Sequence[tuple[int, DeviceConfig]],
    *,
    client: httpx.Client,
    emit: Emit,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> dict[str, int]:
    """Numbered devices taking turns in one process until none is left.

    They share the connection pool and the interpreter, nothing else. One that
    fails is reported and does not stop the others.

    Returns:
      How many ended with the task, were stopped by their own limits, failed.
    """
    trainers = TrainerCache()
    counts = {ENDED: 0, LIMITED: 0, FAILED: 0}
    with ExitStack() as stack:
        sessions: dict[int, tuple[Session, Rim]] = {}
        due: list[tuple[float, int, int]] = []
        turn = 0

        def stopped(number: int, error: DpflError) -> None:
            kind = LIMITED if isinstance(error, BudgetError) else FAILED
            counts[kind] += 1
            event = {"event": kind, "device": number, "reason": str(error)}
            if number in sessions:
                event.update(_traffic(sessions.pop(number)[1]))
            emit(event)

        for number, config in configs:
            try:
                sessions[number] = open_device(stack, config, client=client, trainers=trainers)
            except DpflError as error:
                stopped(number, error)
                continue
            heapq.heappush(due, (clock(), turn, number))
            turn += 1
        while due:
            at, _, number = heapq.heappop(due)
            if at > clock():
                sleep(at - clock())
            session, rim = sessions[number]
            try:
                session, progress = step(session, rim)
            except DpflError as error:
                stopped(number, error)
                continue
            _emit_progress(emit, progress, device=number)
            if progress.ended:
                counts[ENDED] += 1
                del sessions[number]
                continue
            sessions[number] = session, rim
            heapq.heappush(due, (clock() + progress.wait_s, turn, number))
            turn += 1
    return counts


def _emit_progress(emit: Emit, progress: Progress, **who: int) -> None:
    if progress.event not in _QUIET:
        emit({"event": progress.event, **who, **progress.detail})


def _traffic(rim: Rim) -> dict[str, int]:
    return {"bytes_up": rim.link.traffic.up, "bytes_down": rim.link.traffic.down}
