"""What a device computes and how it is protected: training, clipping, noise."""

from __future__ import annotations

import inspect
import math
import os
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from device_bench import Bench
from device_fakes import SignatureOf, inputs_of_step
from device_oracle import train_mlp
from device_server import TestServer
from device_task import SignedTask, save_examples, sign_task

from mobile_client.session import Rim
from mobile_client.trainer import Trainer, TrainerCache
from tf_dpfl.protocol.clipping import CLIP_MARGIN, clip_by_global_norm
from tf_dpfl.protocol.errors import TaskError
from tf_dpfl.protocol.examples import Examples, read_arrays
from tf_dpfl.protocol.noise import noise_stddev_of_share

pytestmark = pytest.mark.usefixtures("each_interpreter")

# Six standard errors: one false alarm in 10^9 runs.
SIGMAS = 6.0


@pytest.fixture
def examples(tmp_path: Path) -> Examples:
    return first(read_arrays(save_examples(tmp_path / "x.npz")), None)


def first(examples: Examples, count: int | None) -> Examples:
    """The first `count` examples, as the task takes them."""
    return {"x": examples["x"][:count].astype(np.float32), "y": examples["y"][:count]}


def trainer_of(task: SignedTask) -> Trainer:
    return TrainerCache().trainer(task.manifest, lambda: task.client)


@pytest.mark.parametrize("model", ["mlp", "mlp-momentum"])
@pytest.mark.parametrize("count", [1, 7, 8, 9, 20])
def test_a_round_equals_the_contract_in_numpy(
    client_files: Path, examples: Any, model: str, count: int
) -> None:
    task = sign_task(client_files, model, privacy={"clip_norm": 1e6})
    part = first(examples, count)
    noise = np.zeros(task.manifest.layout.size, np.float32)
    update = trainer_of(task).train_round(weights=task.weights, examples=part, noise=noise)
    expected = train_mlp(task.weights, part["x"], part["y"], task) - task.weights.astype(np.float64)
    assert np.abs(expected).max() > 1e-3
    np.testing.assert_allclose(update, expected, atol=2e-6)


def test_the_next_round_starts_afresh_from_its_own_weights(task: SignedTask, examples: Any) -> None:
    trainer = trainer_of(task)
    noise = np.zeros(task.manifest.layout.size, np.float32)
    before = trainer.train_round(weights=task.weights, examples=examples, noise=noise)
    trainer.train_round(weights=task.weights * 3, examples=first(examples, 3), noise=noise)
    again = trainer.train_round(weights=task.weights, examples=examples, noise=noise)
    np.testing.assert_array_equal(before, again)


def test_a_large_update_is_clipped_to_the_norm_and_a_small_one_is_untouched(
    client_files: Path, examples: Any
) -> None:
    noise = np.zeros_like(sign_task(client_files).weights)
    norms = {}
    for clip_norm in (1e-3, 1e6):
        task = sign_task(client_files, privacy={"clip_norm": clip_norm})
        update = trainer_of(task).train_round(weights=task.weights, examples=examples, noise=noise)
        norms[clip_norm] = np.linalg.norm(update.astype(np.float64))
    assert norms[1e6] > 0.1
    assert norms[1e-3] <= 1e-3
    assert norms[1e-3] == pytest.approx(1e-3 * (1 - CLIP_MARGIN), rel=1e-5)


def test_the_fed_noise_is_added_after_clipping(task: SignedTask, examples: Any) -> None:
    size = task.manifest.layout.size
    noise = np.random.default_rng(1).normal(size=size).astype(np.float32)
    trainer = trainer_of(task)
    nothing = np.zeros(size, np.float32)
    plain = trainer.train_round(weights=task.weights, examples=examples, noise=nothing)
    noised = trainer.train_round(weights=task.weights, examples=examples, noise=noise)
    np.testing.assert_allclose(noised - noise, plain, atol=1e-6)
    assert np.linalg.norm(noised) > 10 * task.manifest.plan.privacy.clip_norm


def test_training_that_diverges_reports_noise_alone(client_files: Path, examples: Any) -> None:
    task = sign_task(client_files)
    weights = (task.weights * np.float32(1e30)).astype(np.float32)
    noise = np.full(task.manifest.layout.size, 0.25, np.float32)
    examples["x"] *= np.float32(1e30)
    update = trainer_of(task).train_round(weights=weights, examples=examples, noise=noise)
    np.testing.assert_array_equal(update, noise)


class BrokenFile:
    """In the interpreter's place: a file whose privatize_update is not the contract's."""

    def __init__(self, task: SignedTask, privatize: Any):
        self._runners = {
            "set_weights": lambda weights: {"size": np.int32(len(weights))},
            "train": SignatureOf(lambda **_: {"loss": np.float32(0)}, inputs_of_step(task)),
            "privatize_update": lambda **inputs: {"update": privatize(**inputs)},
        }

    def get_signature_list(self) -> dict[str, Any]:
        return self._runners

    def get_signature_runner(self, name: str) -> Any:
        return self._runners[name]

    def get_input_details(self) -> list[Any]:
        return []  # of the primary subgraph, which is another one


@pytest.mark.parametrize(
    ("privatize", "match"),
    [
        (lambda initial, clip_norm, noise: noise + np.float32(clip_norm), "clip_norm"),
        (lambda initial, clip_norm, noise: np.zeros_like(noise), "clip_norm"),
        (lambda initial, clip_norm, noise: noise * np.float32(np.nan), "not finite"),
        (lambda initial, clip_norm, noise: noise[:-1], "shape"),
    ],
    ids=["not clipped", "no noise", "NaN", "short"],
)
def test_a_file_that_does_not_clip_or_add_the_noise_is_caught(
    task: SignedTask, examples: Any, monkeypatch: pytest.MonkeyPatch, privatize: Any, match: str
) -> None:
    monkeypatch.setattr(
        "mobile_client.trainer.load_interpreter", lambda _: BrokenFile(task, privatize)
    )
    trainer = Trainer(b"", task.manifest)
    noise = np.ones(task.manifest.layout.size, np.float32)
    with pytest.raises(TaskError, match=match):
        trainer.train_round(weights=task.weights, examples=examples, noise=noise)


@pytest.mark.parametrize("content", [b"", b"no TFLite file at all" * 10])
def test_a_file_that_is_not_tflite_is_one_clear_error(task: SignedTask, content: bytes) -> None:
    with pytest.raises(TaskError, match=r"client\.tflite"):
        Trainer(content, task.manifest)


def test_the_noise_has_the_deviation_of_one_share(bench: Bench) -> None:
    """Reports of the same weights and data differ by noise alone, of variance 2 s^2."""
    bench.server.rounds = 13
    bench.run()
    reports = [np.frombuffer(body, "<f4").astype(np.float64) for _, _, body in bench.server.arrived]
    privacy = bench.server.task.manifest.plan.privacy
    share = 2.0 * 0.5 / math.sqrt(2)  # z C / sqrt(m)
    assert share == noise_stddev_of_share(
        clip_norm=privacy.clip_norm, noise_multiplier=2.0, smallest_cohort=2
    )
    differences = np.stack(reports[0:-1:2]) - np.stack(reports[1::2])
    values = differences.ravel() / (share * math.sqrt(2))
    assert len(values) > 50_000
    error = 1 / math.sqrt(len(values))
    assert abs(values.mean()) < SIGMAS * error
    assert abs(values.std() - 1) < SIGMAS * error / math.sqrt(2)
    by_coordinate = differences.var(axis=0)
    assert by_coordinate.min() > 0
    # Noise is independent between coordinates and between rounds.
    lag = np.corrcoef(values[:-1], values[1:])[0, 1]
    rounds = np.corrcoef(differences)[~np.eye(len(differences), dtype=bool)]
    assert abs(lag) < SIGMAS * error
    assert np.abs(rounds).max() < SIGMAS / math.sqrt(differences.shape[1])


def test_what_is_left_without_the_noise_is_the_clipped_update(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device whose noise is known: the test of the deviation fails without noise."""
    monkeypatch.setattr(
        "mobile_client.reports.gaussian_noise",
        lambda size, **_: np.zeros(size, np.float32),
    )
    bench.run()
    task = bench.server.task
    x, y = read_arrays(bench.settings.data).values()
    trained = train_mlp(task.weights, x, y, task) - task.weights.astype(np.float64)
    expected = clip_by_global_norm(trained.astype(np.float32), clip_norm=0.5)
    bodies = {body for _, _, body in bench.server.arrived}
    assert len(bodies) == 1
    np.testing.assert_allclose(np.frombuffer(bodies.pop(), "<f4"), expected, atol=2e-6)


def test_two_devices_with_the_same_data_send_different_updates(
    tmp_path: Path, task: SignedTask
) -> None:
    bodies = set()
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        bench = Bench(tmp_path / name, TestServer(task, rounds=1))
        np.random.seed(0)  # noqa: NPY002  a seed must not matter
        bench.run()
        bodies.add(bench.server.arrived[0][2])
    assert len(bodies) == 2


def test_the_noise_comes_from_the_operating_system(bench: Bench) -> None:
    """One 256-bit key a report, from os.urandom."""
    assert inspect.signature(Rim).parameters["random_bytes"].default is os.urandom
    asked = []

    def counting(size: int) -> bytes:
        asked.append(size)
        return os.urandom(size)

    bench.rim_changes["random_bytes"] = counting
    bench.server.rounds = 1
    bench.run()
    assert asked == [32]


def test_a_plan_with_the_noise_on_the_server_adds_none(tmp_path: Path, client_files: Path) -> None:
    task = sign_task(client_files, privacy={"noise": "server"})
    bench = Bench(tmp_path, TestServer(task, rounds=1))
    bench.limit(allow_trusted_server=True)
    bench.run()
    norm = np.linalg.norm(np.frombuffer(bench.server.arrived[0][2], "<f4").astype(np.float64))
    assert 0 < norm <= 0.5


def test_no_more_examples_are_used_than_the_plan_allows(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    train = Trainer.train_round

    def spy(self: Trainer, **inputs: Any) -> Any:
        seen.append(inputs["examples"]["x"])
        return train(self, **inputs)

    monkeypatch.setattr(Trainer, "train_round", spy)
    save_examples(bench.settings.data, count=50)
    bench.server.rounds = 1
    bench.run()
    with np.load(bench.settings.data) as stored:
        np.testing.assert_array_equal(seen[0], stored["x"][:20])


def test_one_interpreter_serves_all_devices_of_a_task(client_files: Path, task: SignedTask) -> None:
    cache = TrainerCache()
    loaded = []

    def load() -> bytes:
        loaded.append(1)
        return task.client

    first = cache.trainer(task.manifest, load)
    assert cache.trainer(replace(task.manifest), load) is first
    other = sign_task(client_files, privacy={"clip_norm": 9.0})
    assert cache.trainer(other.manifest, load) is not first
    assert len(loaded) == 2


def test_training_keeps_no_second_copy_of_the_data(task: SignedTask, examples: Any) -> None:
    many = {name: np.repeat(values, 200, axis=0) for name, values in examples.items()}
    trainer = trainer_of(task)
    noise = np.zeros(task.manifest.layout.size, np.float32)
    tracemalloc.start()
    try:
        trainer.train_round(weights=task.weights, examples=many, noise=noise)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < many["x"].nbytes / 2
