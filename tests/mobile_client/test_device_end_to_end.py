"""A fleet against the real server: two rounds, and the weights they must give."""

from __future__ import annotations

import itertools
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from device_oracle import train_mlp, train_mlp_privately
from device_task import (
    EXAMPLES,
    SignedTask,
    flags,
    plan_of,
    save_examples,
    sign_task,
    write_task,
)

from tf_dpfl.privacy.calibration import calibrate_plan
from tf_dpfl.protocol.clipping import clip_by_global_norm
from tf_dpfl.protocol.examples import read_arrays

ROOT = Path(__file__).parents[2]
DEVICES = 6
CLIENTS = {"population": DEVICES, "clients_per_round": DEVICES}
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "NO_PROXY": "127.0.0.1"}


@contextmanager
def serving(task: SignedTask, folder: Path) -> Iterator[tuple[str, Path]]:
    """`dpfl-server run` until the block ends; gives its URL and state folder."""
    state, log = folder / "server", folder / "server.log"
    task_folder = write_task(task, folder / "task")
    options = flags(state=state, tokens=DEVICES, start_when=DEVICES, poll=0.05)
    with open(log, "wb") as output:
        server = subprocess.Popen(
            [sys.executable, "-m", "server.cli", "run", str(task_folder), "--json", *options],
            env=ENVIRONMENT,
            cwd=ROOT,
            stdout=output,
            stderr=output,
        )
    try:
        end = time.monotonic() + 60
        while True:
            lines = [line for line in log.read_text().splitlines() if line.startswith("{")]
            listening = [e for e in map(json.loads, lines) if e["event"] == "listening"]
            if listening:
                break
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.02)
        yield listening[0]["url"], state
    finally:
        server.terminate()
        server.wait(60)


def run_fleet(
    task: SignedTask,
    folder: Path,
    url: str,
    state: Path,
    *,
    counts: Sequence[int] = (EXAMPLES,) * DEVICES,
) -> list[dict[str, Any]]:
    """All devices to the task's end; `counts` are how many examples each has."""
    (folder / "data").mkdir()
    for number, count in enumerate(counts):
        save_examples(folder / "data" / f"{number}.npz", seed=number, count=count)
    options = flags(
        count=DEVICES,
        processes=2,
        server=url,
        task_key=task.task_key,
        data=folder / "data",
        state=folder / "fleet",
        tokens=state / "tokens.txt",
    )
    done = subprocess.run(
        [sys.executable, "-m", "mobile_client.cli", "fleet", "--json", *options],
        env=ENVIRONMENT,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr + done.stdout
    return [json.loads(line) for line in done.stdout.splitlines()]


def released(state: Path) -> tuple[int, np.ndarray]:
    latest = json.loads((state / "latest.json").read_text())
    return latest["released_rounds"], np.frombuffer((state / latest["weights"]).read_bytes(), "<f4")


@pytest.mark.parametrize("model", ["mlp", "mlp-momentum", "mlp-momentum-keep"])
def test_without_noise_two_rounds_give_the_weights_of_the_contract(
    tmp_path: Path, client_files: Path, model: str
) -> None:
    task = sign_task(
        client_files,
        model,
        clients=CLIENTS,
        privacy={"noise_multiplier": 0.0},
        central_epsilon=None,
    )
    with serving(task, tmp_path) as (url, state):
        events = run_fleet(task, tmp_path, url, state)
        rounds, weights = released(state)
    assert rounds == task.manifest.plan.server.rounds == 3
    assert events[-1]["reports_sent"] == 3 * DEVICES
    expected = task.weights
    clipped = 0
    # Devices take turns in one interpreter: each must find its own velocity.
    kept = [np.zeros(len(expected)) if "-keep" in model else None for _ in range(DEVICES)]
    for _ in range(rounds):
        total = np.zeros(len(expected))
        for number in range(DEVICES):
            x, y = read_arrays(tmp_path / "data" / f"{number}.npz").values()
            trained = train_mlp(expected, x, y, task, velocity=kept[number])
            update = (trained - expected).astype(np.float32)
            total += clip_by_global_norm(update, clip_norm=0.5)
            clipped += bool(np.linalg.norm(update) > 0.5)
        expected = (expected + total / DEVICES).astype(np.float32)
    assert clipped > 0
    np.testing.assert_allclose(weights, expected, atol=1e-5)
    assert np.abs(weights - task.weights).max() > 1e-2


def test_without_noise_three_rounds_of_unit_example_are_dp_sgd_in_numpy(
    tmp_path: Path, client_files: Path
) -> None:
    task = sign_task(
        client_files,
        "mlp-example",
        clients=CLIENTS,
        privacy={"noise_multiplier": 0.0, "clip_norm": 0.2},
        central_epsilon=None,
    )
    with serving(task, tmp_path) as (url, state):
        events = run_fleet(task, tmp_path, url, state)
        rounds, weights = released(state)
        card = json.loads((state / "privacy.json").read_text())
    assert rounds == 3 and events[-1]["reports_sent"] == 3 * DEVICES
    assert card["unit"] == "example" and card["central"]["epsilon_text"] == "infinite"
    expected = task.weights
    for _ in range(rounds):
        total = np.zeros(len(expected))
        for number in range(DEVICES):
            x, y = read_arrays(tmp_path / "data" / f"{number}.npz").values()
            nothing = itertools.repeat(np.zeros(len(expected)))
            total += train_mlp_privately(expected, x, y, task, noises=nothing) - expected
        expected = (expected + total / DEVICES).astype(np.float32)
    np.testing.assert_allclose(weights, expected, atol=1e-6)
    assert np.abs(weights - task.weights).max() > 1e-3


def test_with_noise_every_device_reports_and_knows_its_own_epsilon(
    tmp_path: Path, client_files: Path
) -> None:
    asked = {"noise_multiplier": None, "target_local_epsilon": 20.0}
    plan = calibrate_plan(plan_of("mlp", clients=CLIENTS, **asked))
    task = sign_task(client_files, plan=plan, central_epsilon=1000.0)
    with serving(task, tmp_path) as (url, state):
        events = run_fleet(task, tmp_path, url, state)
        rounds, weights = released(state)
        local = json.loads((state / "privacy.json").read_text())["local"]
    assert rounds == 3
    done = [event for event in events if event["event"] == "done"]
    assert len(done) == DEVICES
    assert len({event["device_id"] for event in done}) == DEVICES
    assert all(event["reports_sent"] == 3 for event in done)
    assert all(event["local_epsilon"] == local["epsilon_all_reports"] for event in done)
    assert local["epsilon_asked_of_one_report"] == 20.0
    assert 19.99 < local["epsilon_one_report"] <= 20.0
    # The noise of all rounds' sums, divided by the cohort: z C sqrt(n / m) sqrt(T) / n.
    noise = plan.privacy.calibrated_noise_multiplier
    stddev = noise * 0.5 * np.sqrt(DEVICES / 2 * rounds) / DEVICES
    assert np.std(weights - task.weights) == pytest.approx(stddev, rel=0.1)


ADAPTING = {"adaptive_clipping": True, "target_quantile": 0.6}
SPREAD = (1, 3, 6, 10, 15, 20)  # examples: the more, the longer the update


def updates_of(weights: np.ndarray, task: SignedTask, folder: Path) -> list[np.ndarray]:
    """Every device's update from those weights, in float64."""
    updates = []
    for number in range(DEVICES):
        x, y = read_arrays(folder / "data" / f"{number}.npz").values()
        updates.append((train_mlp(weights, x, y, task) - weights).astype(np.float32))
    return updates


def clip_norms_of(state: Path) -> list[float]:
    lines = (state / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["clip_norm"] for line in lines]


def test_without_noise_the_clip_norm_goes_the_way_of_a_readable_loop(
    tmp_path: Path, client_files: Path
) -> None:
    """From a hundredth of what it comes to; sums, counts, clip norms and models of all rounds."""
    rounds, rate = 7, 2.5
    privacy = {**ADAPTING, "noise_multiplier": 0.0, "clip_norm": 0.01, "clip_learning_rate": rate}
    task = sign_task(
        client_files, clients=CLIENTS, privacy=privacy, rounds=rounds, central_epsilon=None
    )
    with serving(task, tmp_path) as (url, state):
        events = run_fleet(task, tmp_path, url, state, counts=SPREAD)
        done, weights = released(state)
    assert done == rounds and events[-1]["reports_sent"] == rounds * DEVICES
    expected, clip_norm, clip_norms, clipped = task.weights, 0.01, [], []
    for _ in range(rounds):
        updates = updates_of(expected, task, tmp_path)
        total = sum(clip_by_global_norm(u, clip_norm=clip_norm).astype(np.float64) for u in updates)
        unclipped = sum(bool(np.linalg.norm(u) <= clip_norm) for u in updates)
        expected = (expected + total / DEVICES).astype(np.float32)
        clip_norms.append(clip_norm)
        clipped.append(DEVICES - unclipped)
        clip_norm *= math.exp(-rate * (unclipped / DEVICES - 0.6))
    np.testing.assert_allclose(clip_norms_of(state), clip_norms, rtol=1e-5)
    np.testing.assert_allclose(weights, expected, atol=1e-5)
    assert clipped[0] == DEVICES and 0 < clipped[-1] < DEVICES
    trained = [event for event in events if event["event"] == "trained"]
    assert sorted({e["clip_norm"] for e in trained}) == sorted(set(clip_norms_of(state)))


def test_with_noise_the_clip_norm_comes_near_the_quantile_from_a_hundredth(
    tmp_path: Path, client_files: Path
) -> None:
    privacy = {
        **ADAPTING,
        "noise_multiplier": 0.02,
        "clip_count_stddev": 0.1,
        "clip_norm": 0.005,
        "clip_learning_rate": 2.0,
    }
    task = sign_task(
        client_files, clients=CLIENTS, privacy=privacy, rounds=10, central_epsilon=None
    )
    with serving(task, tmp_path) as (url, state):
        events = run_fleet(task, tmp_path, url, state, counts=SPREAD)
        _, weights = released(state)
        card = json.loads((state / "privacy.json").read_text())
    clip_norms = clip_norms_of(state)
    norms = [np.linalg.norm(u) for u in updates_of(weights, task, tmp_path)]
    assert clip_norms[0] == pytest.approx(0.005) and np.median(norms) > 0.3
    # A step is at most a factor of e^(2 * 0.6) = 3.3, and its noise a twentieth.
    assert np.median(norms) / 5 < clip_norms[-1] < 5 * np.median(norms)
    assert card["adaptive_clipping"]["clip_count_stddev"] == 0.1
    assert "clip norm of each round" in card["released"]
    done = [event for event in events if event["event"] == "done"]
    assert all(event["local_epsilon"] == done[0]["local_epsilon"] > 0 for event in done)
