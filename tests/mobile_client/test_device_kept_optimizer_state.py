"""A local optimizer that goes on from the device's last round: kept, private, never moved twice."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from device_bench import Bench
from device_oracle import train_mlp
from device_server import TestServer
from device_task import SignedTask, save_examples, sign_task
from test_device_crash import Killed, survivors

from mobile_client.trainer import Trainer
from tf_dpfl.protocol.errors import StateError, TaskError
from tf_dpfl.protocol.examples import read_arrays

ROUNDS = 3


@pytest.fixture
def task(client_files: Path) -> SignedTask:
    return sign_task(client_files, "mlp-momentum-keep")


def bench_of(folder: Path, task: SignedTask) -> Bench:
    folder.mkdir()
    return Bench(folder, TestServer(task, rounds=ROUNDS))


def state_files(bench: Bench) -> list[Path]:
    return sorted((bench.state / "optimizer_state").iterdir())


def velocity_of(bench: Bench) -> np.ndarray:
    path = state_files(bench)[-1]
    return np.frombuffer(path.read_bytes().partition(b"\n")[2], "<f4")


def expected_velocity(bench: Bench, task: SignedTask, *, rounds: int) -> np.ndarray:
    """The test server has the same weights in every round."""
    x, y = read_arrays(bench.settings.data).values()
    velocity = np.zeros(len(task.weights))
    for _ in range(rounds):
        train_mlp(task.weights, x, y, task, velocity=velocity)
    return velocity


def test_three_rounds_leave_the_velocity_of_three_rounds(tmp_path: Path, task: SignedTask) -> None:
    bench = bench_of(tmp_path / "a", task)
    bench.run()
    expected = expected_velocity(bench, task, rounds=ROUNDS)
    np.testing.assert_allclose(velocity_of(bench), expected, atol=1e-5)
    once = expected_velocity(bench, task, rounds=1)
    assert np.abs(expected - once).max() > 1e-2  # a fresh start would be seen


def test_a_kill_at_any_operation_moves_the_state_once_a_round(
    tmp_path: Path, task: SignedTask
) -> None:
    whole = bench_of(tmp_path / "whole", task)
    # The first operations: it is not enrolled yet.
    for bench, session in survivors(whole, lambda name: bench_of(tmp_path / name, task), first=8):
        assert session.ledger.outcomes("sent") == ROUNDS
        np.testing.assert_array_equal(velocity_of(bench), velocity_of(whole))


def test_a_state_counts_with_its_report_and_not_before(tmp_path: Path, task: SignedTask) -> None:
    """Cut off between the two, a round starts again from the state before it."""
    bench = bench_of(tmp_path / "a", task)
    bench.run(until="report")
    first = velocity_of(bench)
    with pytest.MonkeyPatch.context() as patch:

        def killed(*_: object) -> None:
            raise Killed

        patch.setattr("mobile_client.state.StateFolder.save_report", killed)
        with pytest.raises(Killed):
            bench.run()
    assert len(state_files(bench)) == 2  # of rounds 1 and 2, and 2 does not count
    bench.run(until="charged")
    assert len(state_files(bench)) == 1
    np.testing.assert_allclose(
        velocity_of(bench), expected_velocity(bench, task, rounds=2), atol=1e-5
    )
    assert np.abs(velocity_of(bench) - first).max() > 1e-2


def test_the_state_is_the_owners_alone_and_nothing_of_it_is_sent(
    tmp_path: Path, task: SignedTask
) -> None:
    bench = bench_of(tmp_path / "a", task)
    sent: list[bytes] = []
    answer = bench.server.answer

    def listening(
        method: str, path: str, headers: dict[str, str], body: bytes
    ) -> tuple[int, bytes]:
        sent.append(body + json.dumps(headers).encode())
        return answer(method, path, headers, body)

    bench.server.answer = listening  # type: ignore[method-assign]
    for number in range(1, ROUNDS + 1):
        bench.run(until="report")
        velocity = velocity_of(bench).tobytes()
        assert len(velocity) == 4 * len(task.weights)
        pieces = [velocity[i : i + 32] for i in range(0, len(velocity), 256)]
        pieces = [piece for piece in pieces if any(piece)]
        assert len(pieces) > 50
        assert not any(piece in body for piece in pieces for body in sent), number
    assert max(len(body) for _, _, body in bench.server.arrived) == 4 * len(task.weights)
    (path,) = state_files(bench)
    assert (path.stat().st_mode | path.parent.stat().st_mode) & 0o077 == 0


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        ("missing", "is missing"),
        ("short", "is damaged"),
        ("flipped", "is damaged"),
        ("no header", "can not be read"),
        ("version", "version 2 is not readable here"),
    ],
)
def test_a_damaged_state_stops_the_device_and_says_how_to_go_on(
    tmp_path: Path, task: SignedTask, damage: str, says: str
) -> None:
    bench = bench_of(tmp_path / "a", task)
    bench.run(until="report")
    (path,) = state_files(bench)
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        flipped = content[:-1] + bytes([content[-1] ^ 1])
        damaged = {
            "short": content[:-8],
            "flipped": flipped,
            "no header": content[5:],
            "version": content.replace(b'"version": 1', b'"version": 2'),
        }
        path.write_bytes(damaged[damage])
    with pytest.raises(StateError, match=rf"{path.name}: {says}.*remove the folder"):
        bench.run()
    for file in path.parent.iterdir():
        file.unlink()
    path.parent.rmdir()
    bench.run(until="charged")
    np.testing.assert_allclose(
        velocity_of(bench), expected_velocity(bench, task, rounds=1), atol=1e-5
    )


def test_a_state_that_is_not_finite_is_not_kept(task: SignedTask) -> None:
    trainer = Trainer(task.client, task.manifest)
    before = np.full(len(task.weights), np.inf, np.float32)
    trainer._start_from(task.weights, before)
    known = np.ones_like(before)
    kept = trainer.optimizer_state(before=known, weights=task.weights)
    np.testing.assert_array_equal(kept, known)


@pytest.mark.usefixtures("each_interpreter")
@pytest.mark.parametrize(("velocity", "broken"), [(0.5, False), (2e18, True)])
def test_an_update_that_counts_as_zero_leaves_the_state_as_it_was(
    client_files: Path, tmp_path: Path, velocity: float, broken: bool
) -> None:
    """The velocity stays finite either way; the update's squared norm overflows with 2e18.

    The simulation decides by the norm of the update as well.
    """
    task = sign_task(client_files, "mlp-momentum-keep")
    trainer, before = Trainer(task.client, task.manifest), np.full_like(task.weights, velocity)
    x, y = read_arrays(save_examples(tmp_path / "own.npz")).values()
    noise = np.full_like(task.weights, 0.25)
    report = trainer.train_round(
        weights=task.weights,
        examples={"x": x[:8].astype(np.float32), "y": y[:8]},
        noise=noise,
        optimizer_state=before,
    )
    kept = trainer.optimizer_state(before=before, weights=task.weights)
    after = np.array(trainer._run("get_optimizer_state")["state"])
    assert np.isfinite(after).all() and not np.array_equal(after, before)
    assert np.array_equal(report, noise) == broken
    np.testing.assert_array_equal(kept, before if broken else after)


def test_a_file_that_can_not_keep_a_state_is_refused(client_files: Path) -> None:
    task = sign_task(client_files, "mlp-momentum-keep")
    other = sign_task(client_files, "mlp-momentum")
    with pytest.raises(TaskError, match="lacks the signatures set_optimizer_state"):
        Trainer(other.client, task.manifest)
