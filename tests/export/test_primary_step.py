"""The training step of an exported file as the device runs it: in place, in the first graph."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from export_bench import plan_of
from layer_models import LAYERS

from mobile_client.step import TrainingStep
from tf_dpfl.client_work.computation import layout_of
from tf_dpfl.export.client import build_client_tflite
from tf_dpfl.export.random_examples import RandomExamples
from tf_dpfl.export.tuning.file import pack, unpack
from tf_dpfl.export.tuning.order import put_first
from tf_dpfl.protocol import signatures
from tf_dpfl.protocol.errors import TaskError
from tf_dpfl.protocol.interpreter import CHOICE_VARIABLE, PACKAGES, load_interpreter

BATCH = 4
NAMES = {"x", "y", "weight", "learning_rate"}


class Gain(tf.keras.layers.Layer):
    """Times one trained number: a variable of shape ()."""

    def build(self, shape: Any) -> None:
        self.gain = self.add_weight(name="gain", shape=(), initializer="ones")

    def call(self, x: Any) -> Any:
        return x * self.gain


@pytest.fixture(params=PACKAGES, autouse=True)
def each_interpreter(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CHOICE_VARIABLE, request.param)


@functools.cache
def case(unit: str, name: str = "embedding") -> tuple[Any, bytes, dict[str, Any]]:
    """A model, its file and one batch with all numbers."""
    model = (
        tf.keras.Sequential([tf.keras.layers.InputLayer((3,)), Gain(), tf.keras.layers.Dense(3)])
        if name == "one number"
        else LAYERS[name]()
    )
    plan = plan_of(batch_size=BATCH, unit=unit, delta=1e-4)
    batch = dict(RandomExamples(model, plan.local_training).batch(np.random.default_rng(1), BATCH))
    batch |= {"weight": np.ones(BATCH, np.float32), "learning_rate": np.float32(0.1)}
    if unit == "example":
        batch["sensitivity"] = np.float32(0.0125)
    return model, build_client_tflite(model, plan), batch


def fill(parts: Any, shares: Any) -> None:
    for part, share in zip(parts, shares, strict=True):
        part[...] = share


def weights_after(content: bytes, start: Any, step: Any) -> Any:
    interpreter = load_interpreter(content)
    interpreter.get_signature_runner(signatures.SET_WEIGHTS)(weights=start)
    step(interpreter)
    return interpreter.get_signature_runner(signatures.GET_WEIGHTS)()["weights"]


@pytest.mark.parametrize("primary", [None, signatures.GET_WEIGHTS])
@pytest.mark.parametrize("name", ["embedding", "one number"])
@pytest.mark.parametrize("unit", ["user", "example"])
def test_a_step_fed_in_place_is_the_signatures_whatever_graph_is_first(
    unit: str, name: str, primary: str | None
) -> None:
    model, content, batch = case(unit, name)
    if primary is not None:  # as files of older releases are
        file = unpack(content)
        put_first(file, primary)
        content = pack(file)
    layout, rng = layout_of(model), np.random.default_rng(2)
    start = rng.normal(size=layout.size).astype(np.float32)
    noise = rng.normal(size=(2, layout.size)).astype(np.float32) if unit == "example" else None
    signature = signatures.step_of_unit(unit)

    def in_place(interpreter: Any) -> None:
        step = TrainingStep(interpreter, signature)
        for number in range(2):  # what was written is not left behind, and not needed again
            if noise is not None:
                fill(step.noise(), layout.split(noise[number]))
            step.write(batch)
            step.run()

    def handed_over(interpreter: Any) -> None:
        run = interpreter.get_signature_runner(signature)
        for number in range(2):
            shares = [] if noise is None else layout.split(noise[number])
            run(**batch, **signatures.noise_inputs(shares))

    ours, theirs = (weights_after(content, start, step) for step in (in_place, handed_over))
    assert np.abs(theirs - start).max() > 1e-3
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("unit", ["user", "example"])
def test_the_step_of_the_plan_is_the_graph_that_plain_invoke_runs(unit: str) -> None:
    _, content, _ = case(unit)
    interpreter = load_interpreter(content)
    run = interpreter.get_signature_runner(signatures.step_of_unit(unit))
    names = [detail["name"] for detail in run.get_input_details().values()]
    assert sorted(names) == sorted(detail["name"] for detail in interpreter.get_input_details())


def test_a_loop_survives_the_new_order() -> None:
    """Its condition and body are graphs of the file too, found by their place."""
    model, plan = LAYERS["embedding"](), plan_of(batch_size=BATCH, unit="example", delta=1e-4)
    content = build_client_tflite(model, plan, dp_method="loop")
    one_pass = build_client_tflite(model, plan, dp_method="one_pass")
    _, _, batch = case("example")
    layout = layout_of(model)
    start = np.random.default_rng(2).normal(size=layout.size).astype(np.float32)
    nothing = signatures.noise_inputs(layout.split(np.zeros_like(start)))

    def step(interpreter: Any) -> None:
        interpreter.get_signature_runner(signatures.TRAIN_DP)(**batch, **nothing)

    looped, passed = (weights_after(file, start, step) for file in (content, one_pass))
    assert np.abs(looped - start).max() > 1e-3
    np.testing.assert_allclose(looped, passed, atol=1e-6)


def test_inputs_of_another_release_are_named() -> None:
    model, content, _ = case("example")
    step = TrainingStep(load_interpreter(content), signatures.TRAIN_DP)
    layout = layout_of(model)
    step.check_inputs(NAMES | {"sensitivity"}, noise=layout)
    with pytest.raises(
        TaskError, match=r"lacks the inputs \['noise'\].*'noise_0'.*export it again"
    ):
        step.check_inputs(NAMES | {"sensitivity", "noise"})
    wider = type(layout)(layout.names, (*layout.shapes[:-1], (77,)))
    with pytest.raises(TaskError, match=r"noise_\d+ is .*77"):
        step.check_inputs(NAMES | {"sensitivity"}, noise=wider)


@pytest.mark.parametrize("wrong", ["shape", "type", "unknown", "missing"])
def test_inputs_that_do_not_fit_are_refused(wrong: str) -> None:
    _, content, batch = case("user")
    step = TrainingStep(load_interpreter(content), signatures.TRAIN)
    given = {
        "shape": {**batch, "weight": np.ones(1, np.float32)},  # would be broadcast
        "type": {**batch, "weight": np.ones(BATCH)},
        "unknown": {**batch, "noise": np.ones(3, np.float32)},
        "missing": {name: value for name, value in batch.items() if name != "weight"},
    }[wrong]
    with pytest.raises(ValueError, match="weight"):
        step.write(given)


def test_a_step_does_not_run_while_somebody_holds_its_memory() -> None:
    model, content, batch = case("example")
    step = TrainingStep(load_interpreter(content), signatures.TRAIN_DP)
    fill(step.noise(), layout_of(model).split(np.zeros(layout_of(model).size, np.float32)))
    step.write(batch)
    kept = step.noise()
    with pytest.raises(RuntimeError, match="reference to internal data"):
        step.run()
    del kept
    step.run()
