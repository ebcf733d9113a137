"""Plans with unit "example" on a device: every step clipped and noised, and accounted so."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from device_bench import Bench
from device_fakes import SignatureOf, giving, inputs_of_step
from device_oracle import train_mlp_privately
from device_server import TestServer
from device_task import SignedTask, save_examples, sign_task

from mobile_client.events import sentence
from mobile_client.reports import make_report
from mobile_client.status import device_status
from mobile_client.trainer import Trainer
from tf_dpfl.protocol.errors import BudgetError, TaskError
from tf_dpfl.protocol.examples import Examples, read_arrays
from tf_dpfl.protocol.gaussian import gaussian_epsilon
from tf_dpfl.protocol.signatures import noise_inputs

pytestmark = pytest.mark.usefixtures("each_interpreter")

STEPS = 2 * 3  # epochs times batches of 20 examples
BATCH = 8


@pytest.fixture
def task(client_files: Path) -> SignedTask:
    return sign_task(client_files, "mlp-example")


@pytest.fixture
def examples(tmp_path: Path) -> Examples:
    return examples_of(tmp_path, 20)


def examples_of(folder: Path, count: int) -> Examples:
    arrays = read_arrays(save_examples(folder / "x.npz"))
    return {"x": arrays["x"][:count].astype(np.float32), "y": arrays["y"][:count]}


def noises(size: int, *, scale: float) -> list[np.ndarray]:
    generator = np.random.default_rng(8)
    return [(scale * generator.normal(size=size)).astype(np.float32) for _ in range(STEPS)]


@pytest.mark.parametrize("model", ["mlp-example", "mlp-momentum-example"])
@pytest.mark.parametrize("count", [1, 8, 20])
def test_a_round_is_dp_sgd_in_numpy_with_a_draw_for_each_step(
    client_files: Path, tmp_path: Path, model: str, count: int
) -> None:
    task, part = sign_task(client_files, model), examples_of(tmp_path, count)
    given = noises(len(task.weights), scale=0.2)
    rate = 1.0 if "momentum" in model else task.manifest.plan.local_training.learning_rate
    drawn = iter([noise * np.float32(rate / BATCH) for noise in given])
    update = Trainer(task.client, task.manifest).train_private_steps(
        weights=task.weights, examples=part, draw_noise=giving(lambda: next(drawn))
    )
    steps = 2 * math.ceil(count / BATCH)
    assert len(list(drawn)) == STEPS - steps  # one draw a step, none twice
    expected = train_mlp_privately(task.weights, part["x"], part["y"], task, noises=iter(given))
    expected = expected - task.weights.astype(np.float64)
    assert np.abs(expected).max() > 1e-3
    np.testing.assert_allclose(update, expected, atol=5e-6)


def test_without_noise_no_example_moves_the_report_by_more_than_its_clipped_share(
    client_files: Path, examples: Any
) -> None:
    """One epoch: whatever an example holds, its own step changes by at most C / B."""
    task = sign_task(client_files, "mlp-example", privacy={"clip_norm": 1e-3})
    trainer, nothing = Trainer(task.client, task.manifest), np.zeros_like(task.weights)
    update = trainer.train_private_steps(
        weights=task.weights, examples=examples, draw_noise=giving(lambda: nothing)
    )
    rate = task.manifest.plan.local_training.learning_rate
    largest = rate / BATCH * 1e-3 * 2 * len(examples["y"])
    rounding = 1e-6 * np.linalg.norm(task.weights)
    assert 0.1 * largest < np.linalg.norm(update.astype(np.float64)) <= largest + rounding


def body_of(bench: Bench) -> np.ndarray:
    return np.frombuffer(bench.server.arrived[0][2], "<f4").astype(np.float64)


def loud_bench(folder: Path, client_files: Path) -> Bench:
    """Noise so large that a report is little else; the step's scale is z C lr / B."""
    folder.mkdir()
    task = sign_task(client_files, "mlp-example", privacy={"noise_multiplier": 400.0})
    return Bench(folder, TestServer(task, rounds=1))


def test_every_step_carries_its_own_noise_of_the_plans_scale(
    tmp_path: Path, client_files: Path
) -> None:
    """The same noise in every step would add up to sqrt(6) times as much, none to 0."""
    bench = loud_bench(tmp_path / "a", client_files)
    bench.run()
    expected = 400.0 * 0.5 * 0.1 / BATCH * math.sqrt(STEPS)
    # Six standard errors, and what the clipped gradients may add.
    gradients = 20 * 2 * 0.5 * 0.1 / BATCH / math.sqrt(len(body_of(bench)))
    error = 6 / math.sqrt(2 * len(body_of(bench)))
    assert np.std(body_of(bench)) == pytest.approx(expected, rel=error, abs=gradients)


def test_devices_and_steps_share_no_noise(tmp_path: Path, client_files: Path) -> None:
    bodies = []
    for name in ("a", "b"):
        bench = loud_bench(tmp_path / name, client_files)
        np.random.seed(0)  # noqa: NPY002  a seed must not matter
        bench.run()
        bodies.append(body_of(bench))
    correlation = np.corrcoef(bodies)[0, 1]
    assert abs(correlation) < 6 / math.sqrt(len(bodies[0]))


@pytest.mark.parametrize(
    ("model", "sensitivity"),
    [("mlp-example", 0.5 * 0.1 / BATCH), ("mlp-momentum-example", 0.5 / BATCH)],
)
def test_the_file_is_given_the_sensitivity_of_the_step_and_noise_of_it(
    client_files: Path,
    examples: Any,
    monkeypatch: pytest.MonkeyPatch,
    model: str,
    sensitivity: float,
) -> None:
    """C lr / B where the step comes off the weights, C / B where an optimizer takes it."""
    task, seen = sign_task(client_files, model, privacy={"noise_multiplier": 3.0}), []

    def step(**inputs: Any) -> np.ndarray:
        seen.append({name: np.array(value) for name, value in inputs.items()})
        return inputs["noise"]

    file = StepFile(task, step)
    monkeypatch.setattr("mobile_client.trainer.load_interpreter", lambda _: file)
    trainer = Trainer(b"", task.manifest)
    monkeypatch.setattr(trainer, "_probed", True)
    make_report(
        trainer,
        task.manifest,
        weights=task.weights,
        examples=examples,
        clip_norm=0.5,
        optimizer_state=None,
        random_bytes=os.urandom,
    )
    assert len(seen) == STEPS
    for given in seen:
        assert given["learning_rate"] == np.float32(0.1)
        assert given["sensitivity"] == np.float32(sensitivity)
    noise = np.concatenate([given["noise"] for given in seen]) / (3.0 * sensitivity)
    assert noise.std() == pytest.approx(1.0, abs=6 / math.sqrt(2 * noise.size))
    assert abs(noise.mean()) < 6 / math.sqrt(noise.size)


def test_each_draw_asks_the_operating_system_anew(tmp_path: Path, task: SignedTask) -> None:
    """One 256-bit key for each step, and one for the trial of the file."""
    bench, asked = Bench(tmp_path, TestServer(task, rounds=2)), []

    def counting(size: int) -> bytes:
        asked.append(size)
        return os.urandom(size)

    bench.rim_changes["random_bytes"] = counting
    bench.run()
    assert asked == [32] * (1 + 2 * STEPS)


def test_reports_and_epochs_are_charged_and_shown(tmp_path: Path, task: SignedTask) -> None:
    bench = Bench(tmp_path, TestServer(task))
    session = bench.run()
    reports = [event.detail for event in bench.events if event.event == "report"]
    # Replace-one of an example: z / 2; two epochs a report.
    expected = [
        gaussian_epsilon(noise_multiplier=1.0, delta=5e-4, reports=2 * k) for k in (1, 2, 3)
    ]
    assert [detail["local_epsilon"] for detail in reports] == expected
    assert session.local_epsilon == expected[2]
    first = next(event.detail for event in bench.events if event.event == "task")
    assert first["unit"] == "example" and first["local_epsilon_of_one_report"] == expected[0]
    assert "unit example" in sentence({"event": "task", **first})
    status = device_status(bench.state)
    assert status["local_epsilon"] == expected[2]
    assert status["unit"].startswith("one example of this device")


def test_the_own_limit_counts_the_epsilon_of_examples(tmp_path: Path, task: SignedTask) -> None:
    bench = Bench(tmp_path, TestServer(task))
    two, three = (gaussian_epsilon(noise_multiplier=1.0, delta=5e-4, reports=2 * k) for k in (2, 3))
    bench.limit(max_local_epsilon=(two + three) / 2)
    with pytest.raises(BudgetError, match="report number 3 .*unit example"):
        bench.run()
    assert sorted(bench.server.accepted) == [1, 2]


def test_who_wants_all_of_its_data_protected_can_refuse_such_plans(
    tmp_path: Path, task: SignedTask, client_files: Path
) -> None:
    bench = Bench(tmp_path, TestServer(task))
    bench.limit(only_user_level=True)
    with pytest.raises(BudgetError, match="only-user-level"):
        bench.run()
    assert bench.server.keys == {}
    (tmp_path / "user").mkdir()
    users = Bench(tmp_path / "user", TestServer(sign_task(client_files), rounds=1))
    users.limit(only_user_level=True)
    assert users.run().ledger.outcomes("sent") == 1


class StepFile:
    """In the interpreter's place: a file that takes `step` off the weights."""

    def __init__(self, task: SignedTask, step: Callable[..., np.ndarray]):
        self._weights = np.zeros_like(task.weights)
        self._layout, self.sets = task.manifest.layout, 0

        def set_weights(weights: np.ndarray) -> dict[str, Any]:
            self._weights, self.sets = weights.copy(), self.sets + 1
            return {"size": np.int32(len(weights))}

        def train_dp(**inputs: Any) -> dict[str, Any]:
            parts = [inputs.pop(name) for name in noise_inputs(self._layout.shapes)]
            move = step(noise=self._layout.join(parts), **inputs)
            self._weights = (self._weights - move).astype(np.float32)
            return {"done": np.int32(BATCH)}

        self._runners = {
            "set_weights": set_weights,
            "train_dp": SignatureOf(train_dp, inputs_of_step(task)),
            "get_weights": lambda: {"weights": self._weights.copy()},
        }

    def get_signature_list(self) -> dict[str, Any]:
        return self._runners

    def get_signature_runner(self, name: str) -> Any:
        return self._runners[name]

    def get_input_details(self) -> list[Any]:
        return []  # of the primary subgraph, which is another one


def gradients(weight: np.ndarray, noise: np.ndarray, *, norm: float) -> np.ndarray:
    """Every real example has the same gradient, of length `norm`."""
    return np.full_like(noise, weight.sum() * norm / math.sqrt(len(noise)))


def right(weight: Any, learning_rate: Any, sensitivity: Any, noise: Any, **_: Any) -> np.ndarray:
    """Gradients of length 2, scaled and clipped, and the noise."""
    return gradients(weight, noise, norm=min(2 * learning_rate / BATCH, sensitivity)) + noise


BROKEN = {
    "no clipping": lambda weight, learning_rate, noise, **_: (
        gradients(weight, noise, norm=2 * learning_rate / BATCH) + noise
    ),
    "no clipping of short gradients": lambda weight, learning_rate, noise, **_: (
        gradients(weight, noise, norm=1e-3 * learning_rate / BATCH) + noise
    ),
    "clipped to twice as much": lambda weight, sensitivity, noise, **_: (
        gradients(weight, noise, norm=2 * sensitivity) + noise
    ),
    "clipped to the plan's clip norm": lambda weight, learning_rate, noise, **_: (
        gradients(weight, noise, norm=0.5 * learning_rate / BATCH) + noise
    ),
    "clipped before the learning rate": lambda weight, learning_rate, sensitivity, noise, **_: (
        gradients(weight, noise, norm=learning_rate / BATCH * min(2, sensitivity)) + noise
    ),
    "clipped by what the learning rate says": (
        lambda weight, learning_rate, sensitivity, noise, **_: (
            gradients(weight, noise, norm=sensitivity / min(1.0, learning_rate / BATCH)) + noise
        )
    ),
    "scaled by the learning rate again": lambda weight, learning_rate, sensitivity, noise, **_: (
        learning_rate / BATCH * (gradients(weight, noise, norm=sensitivity) + noise)
    ),
    "no noise": lambda weight, sensitivity, noise, **_: gradients(weight, noise, norm=sensitivity),
    "half the noise": lambda weight, noise, **_: noise / 2,
    "padding takes part": lambda weight, sensitivity, noise, **_: (
        gradients(np.ones_like(weight), noise, norm=sensitivity) + noise
    ),
    "NaN": lambda weight, noise, **_: noise * np.nan,
}


@pytest.mark.parametrize("step", BROKEN.values(), ids=BROKEN)
@pytest.mark.parametrize("scale", [0.0, 1.0, 1e4])
def test_a_file_that_does_not_clip_or_add_the_noise_is_caught_before_it_trains(
    task: SignedTask,
    examples: Any,
    monkeypatch: pytest.MonkeyPatch,
    step: Callable[..., np.ndarray],
    scale: float,
) -> None:
    file = StepFile(task, step)
    monkeypatch.setattr("mobile_client.trainer.load_interpreter", lambda _: file)
    trainer = Trainer(b"", task.manifest)
    drawn: list[Any] = []
    for _ in range(2):  # not only the first time
        with pytest.raises(TaskError, match="does not clip, or does not add the noise"):
            trainer.train_private_steps(
                weights=task.weights * np.float32(scale),
                examples=examples,
                draw_noise=drawn.append,
            )
    assert drawn == []


@pytest.mark.parametrize("scale", [0.0, 1.0, 1e4])
@pytest.mark.parametrize("clip_norm", [1e-9, 0.5, 1e9])
@pytest.mark.parametrize("model", ["mlp-example", "mlp-momentum-example"])
def test_a_right_file_passes_its_trial_at_any_scale(
    client_files: Path, examples: Any, model: str, scale: float, clip_norm: float
) -> None:
    task = sign_task(client_files, model, privacy={"clip_norm": clip_norm})
    noise = np.zeros_like(task.weights)
    update = Trainer(task.client, task.manifest).train_private_steps(
        weights=task.weights * np.float32(scale),
        examples=examples,
        draw_noise=giving(lambda: noise),
    )
    assert np.isfinite(update).all()


def test_a_file_is_tried_once_for_all_devices_of_a_process(
    task: SignedTask, examples: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = StepFile(task, right)
    monkeypatch.setattr("mobile_client.trainer.load_interpreter", lambda _: file)
    trainer, noise = Trainer(b"", task.manifest), np.zeros_like(task.weights)
    sets = []
    for _ in range(3):
        before = file.sets
        trainer.train_private_steps(
            weights=task.weights, examples=examples, draw_noise=giving(lambda: noise)
        )
        sets.append(file.sets - before)
    assert sets[0] > 1 and sets[1:] == [1, 1]


def test_a_file_without_private_steps_is_refused(client_files: Path, task: SignedTask) -> None:
    with pytest.raises(TaskError, match="train_dp"):
        Trainer(sign_task(client_files).client, task.manifest)


@pytest.mark.parametrize("old", ["the noise in one vector", "the noise of a sum"])
def test_a_file_of_an_older_release_is_refused_by_name(
    task: SignedTask, monkeypatch: pytest.MonkeyPatch, old: str
) -> None:
    """Noise at the scale of a step would be too little where it belongs to a sum."""
    file = StepFile(task, right)
    inputs = inputs_of_step(task)
    del inputs["sensitivity"]
    inputs["clip_norm"] = ((), np.float32)
    said = r"\['sensitivity'\].*\['clip_norm'\].*export it again"
    if old == "the noise in one vector":
        inputs = {name: i for name, i in inputs.items() if not name.startswith("noise_")}
        inputs["noise"] = (task.weights.shape, np.float32)
        said = r"\['noise_0'.*'sensitivity'\].*\['clip_norm', 'noise'\].*export it again"
    run = SignatureOf(lambda **_: {}, inputs)
    monkeypatch.setattr(file, "get_signature_runner", lambda name: run)
    monkeypatch.setattr("mobile_client.trainer.load_interpreter", lambda _: file)
    with pytest.raises(TaskError, match=said):
        Trainer(b"", task.manifest)


@pytest.mark.parametrize("value", [np.nan, np.inf, 3e38])
def test_training_that_diverges_sends_nothing(
    task: SignedTask, examples: Any, value: float
) -> None:
    trainer = Trainer(task.client, task.manifest)
    with pytest.raises(TaskError, match="diverged"):
        trainer.train_private_steps(
            weights=task.weights,
            examples=examples,
            draw_noise=giving(lambda: np.full_like(task.weights, value)),
        )
