"""A device in rounds whose clip norm moves: what it clips to, tells, hides and refuses."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from device_bench import Bench
from device_oracle import train_mlp
from device_server import TestServer
from device_task import SignedTask, save_examples, sign_task

from mobile_client.reports import make_report
from mobile_client.trainer import Trainer
from tf_dpfl.protocol.clipping import clip_by_global_norm
from tf_dpfl.protocol.errors import BudgetError, TaskError, WireError
from tf_dpfl.protocol.examples import Examples, read_arrays
from tf_dpfl.protocol.local_privacy import local_epsilon

pytestmark = pytest.mark.usefixtures("each_interpreter")

SIGMAS = 6.0  # one false alarm in 10^9 runs
NOISE, COUNT_STDDEV = 2.0, 1.5  # smallest cohort 2
OF_UPDATES = (NOISE**-2 - (2 * COUNT_STDDEV) ** -2) ** -0.5


def adapting(files: Path, **privacy: Any) -> SignedTask:
    """A task whose plan's own clip norm is far from any that a round is told."""
    settings = {"adaptive_clipping": True, "clip_norm": 77.0, "clip_count_stddev": COUNT_STDDEV}
    return sign_task(files, privacy={**settings, **privacy})


def silent(files: Path) -> SignedTask:
    return adapting(files, noise_multiplier=0.0, clip_count_stddev=0.0)


@pytest.fixture
def examples(tmp_path: Path) -> Examples:
    arrays = read_arrays(save_examples(tmp_path / "x.npz"))
    return {"x": arrays["x"].astype(np.float32), "y": arrays["y"]}


def reports_of(
    task: SignedTask, examples: Any, *, clip_norm: float, number: int, weights: Any = None
) -> np.ndarray:
    """Reports of one device for the same round, float64 [number, d + 1]."""
    trainer, random_bytes = Trainer(task.client, task.manifest), np.random.default_rng(4).bytes
    return np.stack(
        [
            make_report(
                trainer,
                task.manifest,
                weights=task.weights if weights is None else weights,
                examples=examples,
                clip_norm=clip_norm,
                optimizer_state=None,
                random_bytes=random_bytes,
            ).astype(np.float64)
            for _ in range(number)
        ]
    )


def true_update(task: SignedTask, examples: Any) -> np.ndarray:
    trained = train_mlp(task.weights, examples["x"], examples["y"], task)
    return (trained - task.weights.astype(np.float64)).astype(np.float32)


@pytest.mark.parametrize("factor", [1e-6, 0.5, 0.999, 1.001, 2.0, 1e6])
def test_it_clips_to_the_rounds_norm_and_tells_whether_it_did(
    client_files: Path, examples: Any, factor: float
) -> None:
    task = silent(client_files)
    update = true_update(task, examples)
    norm = float(np.linalg.norm(update.astype(np.float64)))
    (report,) = reports_of(task, examples, clip_norm=factor * norm, number=1)
    expected = clip_by_global_norm(update, clip_norm=factor * norm)
    np.testing.assert_allclose(report[:-1], expected, atol=2e-6 * min(factor, 1.0))
    assert report[-1] == (0.5 if factor > 1 else -0.5)


def test_an_update_that_is_broken_counts_as_zero_and_as_clipped(
    client_files: Path, examples: Any
) -> None:
    task = silent(client_files)
    weights = (task.weights * np.float32(1e30)).astype(np.float32)
    examples["x"] *= np.float32(1e30)
    (report,) = reports_of(task, examples, clip_norm=1e11, number=1, weights=weights)
    assert not report[:-1].any() and report[-1] == -0.5


@pytest.mark.parametrize("clip_norm", [1.1e-9, 0.5, 9e11])
def test_both_parts_carry_their_share_whatever_norm_the_server_names(
    client_files: Path, examples: Any, clip_norm: float
) -> None:
    """The noise follows the round's clip norm; that of the count does not."""
    task = adapting(client_files, noise_multiplier=NOISE)
    reports = reports_of(task, examples, clip_norm=clip_norm, number=150)
    assert np.isfinite(reports).all() and len(set(reports[:, -1])) > 120
    half = 0.5 if clip_norm > 1e9 else -0.5
    counts = (reports[:, -1] - half) / (COUNT_STDDEV / math.sqrt(2))
    assert abs(counts.mean()) < SIGMAS / math.sqrt(len(counts))
    assert abs(counts.std() - 1) < SIGMAS / math.sqrt(2 * len(counts))
    noise = (reports[1:, :-1] - reports[:-1, :-1]) / math.sqrt(2)
    values = noise.ravel() / (OF_UPDATES * clip_norm / math.sqrt(2))
    assert abs(values.std() - 1) < SIGMAS / math.sqrt(values.size)
    for column in noise.T[:20]:  # the count's noise is a draw of its own
        assert abs(np.corrcoef(column, np.diff(reports[:, -1]))[0, 1]) < SIGMAS / math.sqrt(150)


def test_a_trusted_server_gets_the_bare_half_and_the_bare_update(
    tmp_path: Path, client_files: Path
) -> None:
    bench = Bench(tmp_path, TestServer(adapting(client_files, noise="server"), rounds=1))
    bench.server.told = {"clip_norm": 1e-3}
    with pytest.raises(BudgetError, match="allow-trusted-server"):
        bench.run()
    bench.limit(allow_trusted_server=True)
    bench.run()
    report = np.frombuffer(bench.server.arrived[0][2], "<f4")
    assert np.linalg.norm(report[:-1].astype(np.float64)) <= 1e-3 and report[-1] == -0.5


def test_every_round_has_the_clip_norm_it_was_told(tmp_path: Path, client_files: Path) -> None:
    told = [0.125, 2.0**-20, 1024.0]
    bench = Bench(tmp_path, TestServer(silent(client_files)))
    bench.server.told = {"clip_norm": told[0]}

    def next_round(_device: str, number: int, _body: bytes) -> None:
        bench.server.told = {"clip_norm": told[number % 3]}

    bench.server.on_update = next_round
    bench.run()
    reports = [np.frombuffer(body, "<f4").astype(np.float64) for *_, body in bench.server.arrived]
    norms = [np.linalg.norm(report[:-1]) for report in reports]
    assert norms[0] == pytest.approx(0.125, rel=1e-4) and norms[0] <= 0.125
    assert norms[1] == pytest.approx(2.0**-20, rel=1e-4) and norms[1] <= 2.0**-20
    assert 0.2 < norms[2] < 1024
    assert [report[-1] for report in reports] == [-0.5, -0.5, 0.5]
    trained = [event.detail for event in bench.events if event.event == "trained"]
    assert [detail["clip_norm"] for detail in trained] == told


@pytest.mark.parametrize("until", ["trained", "charged"])
def test_a_round_asked_for_again_with_another_norm_gets_the_report_it_had(
    tmp_path: Path, client_files: Path, until: str
) -> None:
    """Two reports of one round with two norms would tell more than the ledger holds."""
    bench = Bench(tmp_path, TestServer(silent(client_files), rounds=1))
    bench.server.told = {"clip_norm": 0.125}
    bench.run(until=until)
    kept = (bench.state / "outbox" / "round_000001.bin").read_bytes()
    bench.server.told = {"clip_norm": 1024.0}
    session = bench.run()
    assert [body for *_, body in bench.server.arrived] == [kept]
    norm = np.linalg.norm(np.frombuffer(kept, "<f4")[:-1].astype(np.float64))
    assert norm == pytest.approx(0.125, rel=1e-4) and session.ledger.count == 1


def test_the_half_is_nowhere_but_in_the_noised_report(tmp_path: Path, client_files: Path) -> None:
    """Neither events nor files of the device hold anything but its report's bytes."""
    bench = Bench(tmp_path, TestServer(adapting(client_files), rounds=1))
    bench.server.told = {"clip_norm": 0.25}
    bench.run()
    report = np.frombuffer(bench.server.arrived[0][2], "<f4")
    assert abs(report[-1]) != 0.5
    (trained,) = [event.detail for event in bench.events if event.event == "trained"]
    assert trained == {"round": 1, "clip_norm": 0.25}
    (sent,) = [event.detail for event in bench.events if event.event == "report"]
    assert set(sent) == {"round", "bytes", "outcome", "reports", "local_epsilon"}
    names = {path.name for path in bench.state.rglob("*") if path.is_file()}
    assert names == {
        "device.key", "device.json", "manifest.json", "client.tflite", "ledger.json", "lock",
    }  # fmt: skip
    assert set(json.loads((bench.state / "ledger.json").read_text())["reports"][0]) == {
        "round", "sha256", "outcome",
    }  # fmt: skip


class NeverTrain:
    """In the trainer's place: training at all fails the test."""

    def trainer(self, *_: Any) -> Any:
        raise AssertionError("the device trained")


@pytest.mark.parametrize(
    "told",
    [
        {},
        {"clip_norm": 0.0},
        {"clip_norm": 9.9e-10},
        {"clip_norm": 1e12},
        {"clip_norm": -0.5},
        {"clip_norm": math.nan},
        {"clip_norm": math.inf},
        {"clip_norm": None},
        {"clip_norm": "0.5"},
    ],
)
def test_a_clip_norm_that_is_missing_or_out_of_range_is_not_trained_with(
    tmp_path: Path, client_files: Path, told: dict[str, Any]
) -> None:
    bench = Bench(tmp_path, TestServer(adapting(client_files)))
    bench.server.told = told
    bench.trainers = NeverTrain()  # type: ignore[assignment]
    with pytest.raises(WireError, match="clip_norm"):
        bench.run()
    assert bench.server.arrived == []


def test_a_server_cannot_move_the_clip_norm_of_a_plan_that_fixes_it(bench: Bench) -> None:
    bench.server.told = {"clip_norm": 0.5}
    bench.trainers = NeverTrain()  # type: ignore[assignment]
    with pytest.raises(WireError, match="fixes clip_norm"):
        bench.run()


def test_a_file_that_does_not_clip_to_the_rounds_norm_is_caught(
    client_files: Path, examples: Any
) -> None:
    """One that clips to the plan's would be caught where that is the larger one."""
    task = adapting(client_files)
    trainer = Trainer(task.client, task.manifest)
    run = trainer._run

    def of_the_plan(signature: str, **inputs: Any) -> Any:
        if "clip_norm" in inputs:
            inputs["clip_norm"] = np.float32(77.0)
        return run(signature, **inputs)

    trainer._run = of_the_plan  # type: ignore[method-assign]
    noise = np.zeros_like(task.weights)
    with pytest.raises(TaskError, match="clip_norm=0.01"):
        trainer.train_round(weights=task.weights, examples=examples, noise=noise, clip_norm=0.01)


def test_the_local_limit_counts_both_parts_of_a_report(tmp_path: Path, client_files: Path) -> None:
    """z is that of both: an update's noise alone would let one report more through."""
    task = adapting(client_files)
    plan = task.manifest.plan
    alone = replace(plan, privacy=replace(plan.privacy, noise_multiplier=OF_UPDATES))
    limit = (local_epsilon(plan, reports=2) + local_epsilon(alone, reports=2)) / 2
    assert local_epsilon(plan, reports=1) < limit < local_epsilon(plan, reports=2)
    bench = Bench(tmp_path, TestServer(task))
    bench.server.told = {"clip_norm": 0.25}
    bench.limit(max_local_epsilon=limit)
    with pytest.raises(BudgetError, match="report number 2"):
        bench.run()
    assert sorted(bench.server.accepted) == [1]
