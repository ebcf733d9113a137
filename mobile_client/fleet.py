"""A fleet: many independent devices in a few processes, for trials and load."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mobile_client.fleet_worker import share_to_json
from mobile_client.runner import ENDED, FAILED, LIMITED, DeviceConfig, Emit
from mobile_client.session import Settings
from tf_dpfl.protocol.errors import DataError, StateError


@dataclass(frozen=True)
class FleetResult:
    """What became of a fleet; bytes are of request and answer bodies."""

    devices: int
    ended: int
    limited: int
    failed: int
    reports_sent: int
    reports_dropped: int
    bytes_up_per_device: float
    bytes_down_per_device: float
    peak_rss_mb: float | None


def fleet_devices(
    *, count: int, data: Path, state: Path, tokens: Path, settings: Settings
) -> list[DeviceConfig]:
    """The i-th sorted `.npz` of `data` and the i-th line of `tokens` make device i.

    Raises DataError when there are fewer of either than `count`.
    """
    if not count >= 1:
        raise DataError(f"--count {count} must be >= 1")
    try:
        files = sorted(path for path in data.iterdir() if path.suffix == ".npz")
        lines = [line.strip() for line in tokens.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"fleet: {error}") from None
    words = [line for line in lines if line]
    if len(files) < count:
        raise DataError(f"{data}: has {len(files)} .npz files, --count {count} needs as many")
    if len(words) < count:
        raise DataError(f"{tokens}: has {len(words)} tokens, --count {count} needs as many")
    return [
        DeviceConfig(replace(settings, data=file, token=token), state / f"device_{number:05d}")
        for number, (file, token) in enumerate(zip(files[:count], words))
    ]


def run_fleet(
    devices: Sequence[DeviceConfig], *, server: str, processes: int, emit: Emit
) -> FleetResult:
    """Runs all devices in `processes` workers until none is left.

    Every event of a worker is passed on to `emit`. Workers end with this
    process, whatever ends it.

    Raises:
      StateError: a worker ended before its devices did.
    """
    if not processes >= 1:
        raise DataError(f"--processes {processes} must be >= 1")
    numbered = list(enumerate(devices))
    shares = [numbered[i::processes] for i in range(min(processes, len(numbered)))]
    events: queue.Queue[tuple[int, Mapping[str, Any] | None]] = queue.Queue()
    workers: list[subprocess.Popen[str]] = []
    totals = _Totals()
    try:
        for index, share in enumerate(shares):
            workers.append(_start(share_to_json(server, share)))
            threading.Thread(
                target=_read_events, args=(index, workers[index], events), daemon=True
            ).start()
        running = len(workers)
        while running:
            index, event = events.get()
            if event is None:
                running -= 1
                if workers[index].wait() != 0:
                    raise StateError(
                        f"fleet: worker {index} ended with status {workers[index].returncode}; "
                        "run the same command again to go on"
                    )
                continue
            totals.add(event)
            if event["event"] != "worker":
                emit(event)
    finally:
        for worker in workers:
            if worker.poll() is None:
                worker.terminate()
            worker.wait()
            for pipe in (worker.stdin, worker.stdout):
                if pipe is not None:
                    pipe.close()
    return totals.result(len(devices))


class _Totals:
    """Adds up what the workers' events say."""

    def __init__(self) -> None:
        self._counts = {ENDED: 0, LIMITED: 0, FAILED: 0}
        self._outcomes = {"sent": 0, "dropped": 0}
        self._bytes = {"bytes_up": 0, "bytes_down": 0}
        self._peak: float | None = None

    def add(self, event: Mapping[str, Any]) -> None:
        if event["event"] == "report":
            self._outcomes[event["outcome"]] += 1
        for key in self._bytes:
            self._bytes[key] += event.get(key, 0)
        if event["event"] == "worker":
            for key in self._counts:
                self._counts[key] += event[key]
            peaks = [p for p in (self._peak, event["peak_rss_mb"]) if p is not None]
            self._peak = max(peaks, default=None)

    def result(self, devices: int) -> FleetResult:
        return FleetResult(
            devices=devices,
            ended=self._counts[ENDED],
            limited=self._counts[LIMITED],
            failed=self._counts[FAILED],
            reports_sent=self._outcomes["sent"],
            reports_dropped=self._outcomes["dropped"],
            bytes_up_per_device=self._bytes["bytes_up"] / devices,
            bytes_down_per_device=self._bytes["bytes_down"] / devices,
            peak_rss_mb=self._peak,
        )


def _start(share: str) -> subprocess.Popen[str]:
    """A worker that has its share; its errors go to this process's stderr."""
    root = str(Path(__file__).resolve().parents[1])
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    worker = subprocess.Popen(
        [sys.executable, "-m", "mobile_client.fleet_worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,  # Ctrl-C is for the parent, which ends its workers
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
    )
    try:
        if worker.stdin is not None:
            worker.stdin.write(share + "\n")
            worker.stdin.flush()
    except BrokenPipeError:
        pass  # it died at once: its exit status tells
    return worker


def _read_events(
    index: int,
    worker: subprocess.Popen[str],
    events: queue.Queue[tuple[int, Mapping[str, Any] | None]],
) -> None:
    """Passes a worker's lines on; None when there are no more."""
    try:
        for line in worker.stdout or ():
            try:
                events.put((index, json.loads(line)))
            except ValueError:
                print(line, end="", file=sys.stderr)  # a library's own output
    finally:
        events.put((index, None))
