"""Killed at any point: one update a round, and none sent without being charged."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from device_bench import Bench
from device_server import TestServer
from device_task import SignedTask

import mobile_client.optimizer_states
import mobile_client.session
import mobile_client.state
import tf_dpfl.protocol.signing
from mobile_client.session import Session, load_session
from mobile_client.state import StateFolder
from tf_dpfl.protocol.files import sha256_hex

ROUNDS = 2


class Killed(BaseException):
    """Stands for SIGKILL: no handler of the device catches it."""


class Reaper:
    """Counts every durable or outward operation and kills before or after one."""

    def __init__(self, bench: Bench, monkeypatch: pytest.MonkeyPatch):
        self.operations = 0
        self.kill_at = -1
        self.kill_after = False
        write = mobile_client.state.write_atomically
        writers = (mobile_client.state, mobile_client.optimizer_states, tf_dpfl.protocol.signing)
        for module in writers:
            monkeypatch.setattr(module, "write_atomically", self._wrapped(write, torn=True))
        sync = mobile_client.state.sync_folder
        monkeypatch.setattr(mobile_client.state, "sync_folder", self._wrapped(sync))
        monkeypatch.setattr(bench.server, "answer", self._wrapped(bench.server.answer))

    def _wrapped(self, function: Any, *, torn: bool = False) -> Any:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            now = self.operations == self.kill_at
            self.operations += 1
            if now and not self.kill_after:
                if torn:  # a half-written temporary file is left behind
                    args[0].with_name(f".{args[0].name}.0123.tmp").write_bytes(b"half")
                raise Killed
            result = function(*args, **kwargs)
            if now:
                raise Killed
            return result

        return wrapper


def survivors(
    whole: Bench, fresh_bench: Callable[[str], Bench], *, first: int = 0
) -> Iterator[tuple[Bench, Session]]:
    """Devices killed before and after each operation of `whole`'s run from `first`, then run on.

    Each with the session that it ended with; `fresh_bench` makes a device from its name.
    """
    with pytest.MonkeyPatch.context() as patch:
        reaper = Reaper(whole, patch)
        whole.run()
        operations = reaper.operations
    assert operations > 20
    for kill_at in range(first, operations):
        for kill_after in (False, True):
            bench = fresh_bench(f"{kill_at}_{kill_after}")
            bench.trainers = whole.trainers
            with pytest.MonkeyPatch.context() as patch:
                reaper = Reaper(bench, patch)
                reaper.kill_at, reaper.kill_after = kill_at, kill_after
                with pytest.raises(Killed):
                    bench.run()
            yield bench, bench.run()


def watch(bench: Bench) -> None:
    """Every body that reaches the server must stand in the ledger on disk."""

    def on_update(_: str, number: int, body: bytes) -> None:
        tree = json.loads((bench.state / "ledger.json").read_text())
        charged = {entry["round"]: entry["sha256"] for entry in tree["reports"]}
        if charged.get(number) != sha256_hex(body):
            raise AssertionError(f"round {number}: an uncharged report was sent")

    bench.server.on_update = on_update


def fresh(tmp_path: Path, task: SignedTask, name: str) -> Bench:
    folder = tmp_path / name
    folder.mkdir()
    bench = Bench(folder, TestServer(task, rounds=ROUNDS))
    watch(bench)
    return bench


def different_bodies(server: TestServer) -> dict[int, int]:
    return {
        number: len({body for _, n, body in server.arrived if n == number})
        for _, number, _ in server.arrived
    }


def test_a_kill_at_any_operation_never_sends_two_updates_or_an_uncharged_one(
    tmp_path: Path, task: SignedTask
) -> None:
    whole = fresh(tmp_path, task, "whole")
    for bench, session in survivors(whole, lambda name: fresh(tmp_path, task, name)):
        assert different_bodies(bench.server) == {1: 1, 2: 1}
        assert session.ledger.count == ROUNDS
        assert session.ledger.outcomes("sent") == ROUNDS
        assert not list((bench.state / "outbox").iterdir())
        assert not list(bench.state.glob(".*.tmp"))
        assert len(bench.server.keys) == 1


def test_kills_at_two_operations_in_a_row_are_survived(tmp_path: Path, task: SignedTask) -> None:
    trainers = None
    for first in range(12, 30, 3):
        for second in range(0, 12, 2):
            bench = fresh(tmp_path, task, f"{first}_{second}")
            bench.trainers = trainers = trainers or bench.trainers
            for kill_at in (first, second):
                with pytest.MonkeyPatch.context() as patch:
                    reaper = Reaper(bench, patch)
                    reaper.kill_at = kill_at
                    with contextlib.suppress(Killed):
                        bench.run()
            bench.run()
            assert set(different_bodies(bench.server).values()) == {1}


def test_without_the_outbox_a_crash_would_send_a_second_update(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test above can fail: with the mechanism out, it sees two updates."""
    bench.server.faults["PUT /v1/rounds/1/update"] = lambda _: (_ for _ in ()).throw(Killed())
    with pytest.raises(Killed):
        bench.run()
    bench.server.faults.clear()
    bench.server.accepted.clear()
    bench.server.round = 1

    def forgetful(folder: StateFolder) -> Any:
        for path in (bench.state / "outbox").iterdir():
            path.unlink()
        folder.save_ledger(mobile_client.state.DeviceLedger())
        return load_session(folder)

    monkeypatch.setattr("mobile_client.runner.load_session", forgetful)
    bench.run()
    assert different_bodies(bench.server)[1] == 2


def test_a_report_whose_bytes_are_lost_is_never_made_again(bench: Bench) -> None:
    bench.run(until="charged")
    (bench.state / "outbox" / "round_000001.bin").unlink()
    bench.server.rounds = 1
    with pytest.raises(AssertionError, match="not finished"):
        bench.run(steps=20)
    assert bench.server.arrived == []
    session = load_session(StateFolder(bench.state))
    assert session.ledger.count == 1  # spent all the same
    assert session.ledger.outcomes("dropped") == 1


def test_an_outbox_changed_after_it_was_charged_is_not_sent(bench: Bench) -> None:
    bench.run(until="charged")
    path = bench.state / "outbox" / "round_000001.bin"
    path.write_bytes(bytes(len(path.read_bytes())))
    with pytest.raises(mobile_client.session.StateError, match="charged for other bytes"):
        bench.run()
    assert bench.server.arrived == []


def test_a_round_that_closed_meanwhile_is_dropped_but_stays_charged(bench: Bench) -> None:
    bench.run(until="charged")
    bench.server.round = 2
    session = bench.run()
    assert session.ledger.outcomes("dropped") == 1
    assert session.ledger.outcomes("sent") == 2
    assert session.ledger.count == 3
    assert not list((bench.state / "outbox").iterdir())


def test_an_answer_that_got_lost_leads_to_the_same_bytes_again(bench: Bench) -> None:
    lost = []

    def lose_once(answer: Any) -> Any:
        lost.append(answer)
        return answer if len(lost) > 1 else (503, b'{"error": "try again"}')

    bench.server.faults["PUT /v1/rounds/1/update"] = lose_once
    bench.run()
    bodies = [body for _, number, body in bench.server.arrived if number == 1]
    assert len(bodies) == 2
    assert bodies[0] == bodies[1]
