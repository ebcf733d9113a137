"""Killed at any moment: no accepted update lost, none counted twice, one charge a round."""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from server_helpers import (
    DEADLINE_S,
    Device,
    ServerProcess,
    dyadic,
    enroll_all,
    http,
    latest_weights,
    make_plan,
    make_task,
    metrics,
    read_tokens,
    running,
)

from server.closing import STEPS
from server.store import Store
from tf_dpfl.protocol.manifest import Manifest

SIZE = 2000
CRASHED = 9

# The real command, ended like by SIGKILL right after the named step.
CRASHING = """
import os, sys
from server import cli, service
serve = service.serve
def crash(step):
    if step == {step!r}:
        os._exit({status})
service.serve = lambda settings, reporter: serve(settings, reporter, on_step=crash)
sys.exit(cli.main())
"""


@contextmanager
def crashing(task: Path, state: Path, *options: str, step: str) -> Iterator[ServerProcess]:
    program = CRASHING.format(step=step, status=CRASHED)
    server = ServerProcess(task, state, *options, program=program)
    try:
        yield server
    finally:
        server.close()


def put_until_down(server: ServerProcess, devices: list[Device], values: np.ndarray) -> None:
    """Every device trains whatever it is told until the server is gone."""
    end = time.monotonic() + DEADLINE_S
    with http(server.url) as client:
        while server.process.poll() is None and time.monotonic() < end:
            try:
                for device, value in zip(devices, values, strict=True):
                    told = device.checkin(client)
                    if told.state == "train":
                        device.put(client, told.round_number, value)
            except httpx.TransportError:
                time.sleep(0.01)
    server.process.wait(DEADLINE_S)


def comparable(state: Path) -> dict[str, Any]:
    """What a run leaves, without times and the numbers of attempts."""
    store = Store(state / "server.sqlite", create=False)
    counts, charges = store.counts(), store.charges()
    store.close()
    lines = [
        {key: value for key, value in line.items() if key not in ("seconds", "round_number")}
        for line in metrics(state)
    ]
    checkpoints = sorted((state / "checkpoints").iterdir())
    return {
        "counts": counts,
        "charges": charges,
        "metrics": lines,
        "card": json.loads((state / "privacy.json").read_text())["spending"],
        "weights": latest_weights(state).tolist(),
        "checkpoints": {path.name: path.read_bytes() for path in checkpoints},
    }


def assert_charged_before_released(state: Path) -> None:
    """At any moment: every model beyond the first one on disk has its charge and its card."""
    store = Store(state / "server.sqlite", create=False)
    charged = store.counts()["charged_rounds"]
    store.close()
    models = len(list((state / "checkpoints").iterdir())) - 1
    told = json.loads((state / "privacy.json").read_text())["spending"]
    assert models <= sum(mechanism["rounds"] for mechanism in told) <= charged


def finish(
    task: Path, state: Path, manifest: Manifest, devices: list[Device] | None, *, step: str | None
) -> list[Device]:
    """Runs a task to its end, crashing once after `step`; returns its devices."""
    options = ("--tokens", "4", "--start-when", "4")
    values = np.outer([1, 2, 4, 8], np.arange(6)).astype(np.float32)
    if step is not None:
        with crashing(task, state, *options, step=step) as server:
            with http(server.url) as client:
                devices = enroll_all(client, manifest, read_tokens(state))
            put_until_down(server, devices, values)
            assert server.process.returncode == CRASHED
        assert_charged_before_released(state)
    with running(task, state, *options, "--exit-when-done", "--linger", "0.1") as server:
        with http(server.url) as client:
            if devices is None:
                devices = enroll_all(client, manifest, read_tokens(state))
        put_until_down(server, devices, values)
        assert server.process.returncode == 0, server.errors()
    return devices


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest]:
    folder = tmp_path_factory.mktemp("crash") / "task"
    plan = make_plan(server__rounds=2, server__optimizer="adam", privacy__noise_multiplier=4.0)
    return folder, make_task(folder, plan)


@pytest.fixture(scope="module")
def uninterrupted(
    task: tuple[Path, Manifest], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    state = tmp_path_factory.mktemp("whole") / "state"
    finish(task[0], state, task[1], None, step=None)
    return comparable(state)


@pytest.mark.parametrize("step", ["opened", *(step for step in STEPS if step != "aborted")])
def test_a_crash_after_any_step_changes_nothing(
    task: tuple[Path, Manifest], uninterrupted: dict[str, Any], tmp_path: Path, step: str
) -> None:
    finish(task[0], tmp_path / "state", task[1], None, step=step)
    assert comparable(tmp_path / "state") == uninterrupted
    assert uninterrupted["counts"]["charged_rounds"] == 2
    assert len(list((tmp_path / "state" / "blobs").iterdir())) == 2  # model and optimizer


def test_a_crash_after_an_abort_opens_a_new_attempt(tmp_path: Path) -> None:
    manifest = make_task(tmp_path / "task", make_plan(server__rounds=1))
    state = tmp_path / "state"
    options = ("--tokens", "4", "--start-when", "4")
    with crashing(
        tmp_path / "task", state, *options, "--round-deadline", "0.5", step="aborted"
    ) as server:
        with http(server.url) as client:
            devices = enroll_all(client, manifest, read_tokens(state))
        assert server.process.wait(DEADLINE_S) == CRASHED
    with running(tmp_path / "task", state, *options, "--exit-when-done") as server:
        with http(server.url) as client:
            for device in devices:
                assert device.wait_for(client, "train").round_number == 2
                assert device.put(client, 2, np.ones(6, np.float32)).status_code == 200
            for device in devices:
                device.wait_for(client, "done")
        assert server.process.wait(DEADLINE_S) == 0
    left = comparable(state)
    assert left["counts"]["aborted_rounds"] == 1
    assert left["counts"]["charged_rounds"] == 1
    assert left["weights"] == [1.0] * 6


def test_a_model_with_server_noise_is_drawn_once_and_released_as_drawn(tmp_path: Path) -> None:
    plan = make_plan(server__rounds=1, privacy__noise="server", privacy__noise_multiplier=4.0)
    manifest = make_task(tmp_path / "task", plan, size=SIZE)
    state = tmp_path / "state"
    options = ("--tokens", "4", "--start-when", "4")
    zeros = np.zeros((4, SIZE), np.float32)
    with crashing(tmp_path / "task", state, *options, step="computed") as server:
        with http(server.url) as client:
            devices = enroll_all(client, manifest, read_tokens(state))
        put_until_down(server, devices, zeros)
    store = Store(state / "server.sqlite", create=False)
    drawn = store.computed(1).weights_blob
    store.close()
    assert json.loads((state / "latest.json").read_text())["released_rounds"] == 0
    with running(
        tmp_path / "task", state, *options, "--exit-when-done", "--linger", "0.1"
    ) as server:
        server.process.wait(DEADLINE_S)
    assert json.loads((state / "latest.json").read_text())["sha256"] == drawn
    # Noise of z C on the sum, divided by the cohort of 4: standard deviation 1.
    deviation = float(latest_weights(state).astype(np.float64).std())
    assert abs(deviation - 1.0) < 5 / (2 * SIZE) ** 0.5


class Swarm:
    """Threads of devices that upload to whatever server is up, again and again."""

    def __init__(self, url: str, devices: list[Device], *, threads: int):
        self.url = url
        self.accepted: set[tuple[str, int]] = set()
        self.seen_round = 0  # the latest round a device was told to train for
        self.last_round = 0  # uploads for later rounds are held back
        self.faults: list[str] = []
        self._lock = threading.Lock()
        self._random = random.Random(5)
        self._threads = [
            threading.Thread(target=self._run, args=(devices[i::threads],)) for i in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def alive(self) -> bool:
        return any(thread.is_alive() for thread in self._threads)

    def join(self) -> None:
        for thread in self._threads:
            thread.join(DEADLINE_S)

    @staticmethod
    def vector(device: Device, number: int) -> np.ndarray:
        seed = int(device.id[:12], 16) * 1000 + number
        return dyadic(np.random.default_rng(seed), SIZE)

    def _run(self, devices: list[Device]) -> None:
        left = list(devices)
        end = time.monotonic() + 3 * DEADLINE_S
        while left and time.monotonic() < end:
            try:
                with http(self.url) as client:
                    while left:
                        left = [device for device in left if self._step(client, device)]
            except httpx.TransportError:
                time.sleep(0.02)
            except Exception as error:
                self.faults.append(repr(error))
                return

    def _step(self, client: httpx.Client, device: Device) -> bool:
        told = device.checkin(client)
        if told.state == "done":
            return False
        if told.state == "wait":
            time.sleep(0.005)
            return True
        number = told.round_number
        self.seen_round = max(self.seen_round, number)
        if number > self.last_round:
            time.sleep(0.005)
            return True
        vector = self.vector(device, number)
        with self._lock:
            twice = self._random.random() < 0.2
        for _ in range(1 + twice):
            answer = device.put(client, number, vector)
            if answer.status_code == 200:
                self.accepted.add((device.id, number))
            elif answer.status_code not in (410, 503):
                self.faults.append(answer.text)
        return True


def counted_reports(state: Path) -> set[tuple[str, int]]:
    """Device and round of every update the store counts."""
    store = Store(state / "server.sqlite", create=False)
    numbers = range(1, store.last_round_number() + 1)
    counted = {(device, number) for number in numbers for device in store.report_digests(number)}
    store.close()
    return counted


def test_killed_many_times_the_released_weights_are_the_exact_sum(tmp_path: Path) -> None:
    rounds, cohort = 12, 32
    plan = make_plan(
        clients__population=cohort,
        clients__clients_per_round=cohort,  # a power of two: the division is exact too
        server__rounds=rounds,
    )
    manifest = make_task(tmp_path / "task", plan, size=SIZE)
    state = tmp_path / "state"
    options = ["--tokens", str(cohort), "--start-when", str(cohort)]
    server = ServerProcess(tmp_path / "task", state, *options)
    try:
        url = server.url
        options += ["--port", url.rsplit(":", 1)[1]]
        with http(url) as client:
            devices = enroll_all(client, manifest, read_tokens(state))
        swarm = Swarm(url, devices, threads=4)
        generator = random.Random()
        for number in range(1, rounds):  # kill in round `number` or the one after it
            swarm.last_round = number + 1
            while swarm.seen_round < number and swarm.alive():
                time.sleep(0.001)
            time.sleep(generator.uniform(0.0, 0.1))
            promised = set(swarm.accepted)
            server.kill()
            server.close()
            assert promised <= counted_reports(state)  # answered means durable
            server = ServerProcess(tmp_path / "task", state, *options)
            assert server.url == url
        swarm.join()
        assert swarm.faults == []
        assert server.stop() == 0
    finally:
        server.close()
    expected = np.zeros(SIZE)
    for number in range(1, rounds + 1):
        expected += (
            sum(Swarm.vector(device, number).astype(np.float64) for device in devices) / cohort
        )
        path = state / "checkpoints" / f"round_{number:06d}.bin"
        np.testing.assert_array_equal(np.frombuffer(path.read_bytes(), "<f4"), expected)
    np.testing.assert_array_equal(latest_weights(state), expected)
    assert [line["reports"] for line in metrics(state)] == [cohort] * rounds
    store = Store(state / "server.sqlite", create=False)
    counts = store.counts()
    store.close()
    counted = counted_reports(state)
    assert swarm.accepted <= counted
    assert counts["charged_rounds"] == counts["released_rounds"] == rounds
    assert counts["aborted_rounds"] == 0
