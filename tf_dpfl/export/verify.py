"""Holding `client.tflite` to TensorFlow before it leaves: same weights, same reports.

The references: the same client computation under TensorFlow's own kernels and
gradients; Keras' own layers and loss under a GradientTape, which share nothing with
it; and the NumPy of `protocol`: `clipping` for the report, `private_step` for DP-SGD.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from tf_dpfl.client_work.computation import layout_of
from tf_dpfl.export.draws import Batch, Check, Draw, draws
from tf_dpfl.export.layers import layer_of_variable
from tf_dpfl.export.operators import refuse_custom_ops
from tf_dpfl.export.random_examples import RandomExamples
from tf_dpfl.export.runners import Runner, interpreter_runner, tensorflow_runner
from tf_dpfl.export.tape import first_step, tape_gradient
from tf_dpfl.export.value_checks import ValueChecks
from tf_dpfl.protocol.errors import ExportError
from tf_dpfl.protocol.plan import Plan
from tf_dpfl.protocol.private_step import noised_step, sensitivity_of_step
from tf_dpfl.protocol.step_scale import rate_before_noise, scale_of_gradients
from tf_dpfl.protocol.tensors import Float32

# A wrong rule is wrong by percents; two correct float32 programs differ by
# 1e-7 to 1e-6 of the largest entry.
_UPDATE_TOLERANCE = 1e-4
_WEIGHT_TOLERANCE = 1e-6
# A gradient that is zero in truth (the bias of an attention key) is rounding of
# what cancels, whose size is that of the other layers' steps.
_CANCELLATION_TOLERANCE = 1e-6
# Adam divides by the gradient's own size, so where it is rounding the step is as
# large as any, and random. Left out are entries this much smaller than the largest
# of their variable, or of the model.
_SMALL_IN_VARIABLE = 3e-3
_SMALL_IN_MODEL = 1e-5
_OUTPUT_TOLERANCE = 1e-4

_STEPS = 6
_PART_MOVED_PER_STEP = 0.02
_MISMATCHES_NAMED = 4

# Gradients of single examples are made one by one.
_EXAMPLES_ON_TAPE = 4
# Not 1, which would hide a rate that is left out; the second times this one does not fit
# the sensitivity, which bounds an example's part all the same.
_PRIVATE_RATE, _RATE_OFF_BY = 0.5, 8.0


@dataclass(frozen=True)
class Verification:
    """What was found: how often each op occurs, and the checks that passed."""

    operators: Mapping[str, int]
    checks: tuple[str, ...]


def verify_client_tflite(
    content: bytes, model: tf.keras.Model, plan: Plan, *, seed: int = 0
) -> Verification:
    """Runs `content` in the interpreter and compares it with TensorFlow.

    Args:
      content: the file, as `client.build_client_tflite` makes it.
      model: the same model; its weights are used and put back.
      plan: the same plan.
      seed: of the random batches and weights.

    Raises:
      ExportError: the file needs Flex or custom ops, or computes something
        else; names layers and the size of the difference.
    """
    operators = refuse_custom_ops(content, model=model)
    device = interpreter_runner(content, model, plan)
    reference = tensorflow_runner(model, plan)
    values = ValueChecks(device, reference, model, plan)
    steps = _StepChecks(device, reference, model, plan)
    kept = model.get_weights()
    passed = []
    try:
        for checks, kinks in ((values, False), (steps, True)):
            for name, check in checks.named():
                _run(name, check, draws(seed, kinks=kinks))
                passed.append(name)
    finally:
        model.set_weights(kept)
    return Verification(operators, tuple(passed))


def _run(name: str, check: Check, chances: Iterable[Draw]) -> None:
    found = []
    for draw in chances:
        faults = check(draw)
        if not faults:
            return
        found.append(faults)
    first = found[0]
    more = len(first) - _MISMATCHES_NAMED
    listed = "; ".join(first[:_MISMATCHES_NAMED]) + (f"; and {more} more" if more > 0 else "")
    raise ExportError(f"client.tflite is not what TensorFlow computes, {name}: {listed}")


class _StepChecks:
    """The comparisons of steps of training."""

    def __init__(
        self, device: Runner, reference: Runner, model: tf.keras.Model, plan: Plan
    ) -> None:
        self._device, self._reference = device, reference
        self._model, self._plan = model, plan
        self._layout = layout_of(model)
        self._initial = reference.get_weights()
        self._examples = RandomExamples(model, plan.local_training)
        self._tape_gradient = tape_gradient(model, plan.local_training)
        self._gradient_of_one = tape_gradient(model, replace(plan.local_training, batch_size=1))
        self._gradients = None
        if plan.local_training.optimizer == "adam":
            plain = replace(plan.local_training, optimizer="sgd", proximal=0.0)
            self._gradients = tensorflow_runner(model, replace(plan, local_training=plain))

    def named(self) -> Iterator[tuple[str, Check]]:
        """The checks with their names."""
        size = self._plan.local_training.batch_size
        for start, shaken in (("the initial", False), ("shaken", True)):
            yield f"{_STEPS} steps from {start} weights", self._steps(shaken=shaken)
            for real in sorted({size, (size + 1) // 2, 1, 0}, reverse=True):
                name = f"one step from {start} weights, {real} of {size} examples real"
                yield name, self._one_step(shaken=shaken, real=real)
            yield f"one step from {start} weights against a GradientTape", self._tape(shaken=shaken)
        if self._device.train_dp is not None:
            for real in sorted({size, (size + 1) // 2, 0}, reverse=True):
                name = f"per-example clipping against the loop, {real} of {size} examples real"
                yield name, self._private_step(real=real)
            yield (
                "per-example clipping with a broken example",
                self._private_step(real=size, broken=True),
            )
            yield "DP-SGD against a GradientTape and NumPy", self._private_tape
        if self._device.get_optimizer_state is not None:
            yield "the optimizer's state kept over rounds", self._kept_state

    def _steps(self, *, shaken: bool) -> Check:
        """Several steps, so that the optimizer's state takes part."""

        def check(draw: Draw) -> list[str]:
            size = self._plan.local_training.batch_size
            batches = [
                self._batch(draw, real=size if step % 3 else (size + 1) // 2)
                for step in range(draw.steps(_STEPS))
            ]
            start = draw.weights(self._initial, shaken=shaken)
            rate = self._steady_rate(start, batches[0])
            return self._training_faults(start, batches, rate)

        return check

    def _one_step(self, *, shaken: bool, real: int) -> Check:
        """One step at learning rate 1, so that the gradient itself is compared."""

        def check(draw: Draw) -> list[str]:
            batch = self._batch(draw, real=real)
            return self._training_faults(draw.weights(self._initial, shaken=shaken), [batch], 1.0)

        return check

    def _tape(self, *, shaken: bool) -> Check:
        """One step at learning rate 1 against Keras' loss and a GradientTape."""

        def check(draw: Draw) -> list[str]:
            size = self._plan.local_training.batch_size
            batch, start = self._batch(draw, real=size), draw.weights(self._initial, shaken=shaken)
            told = self._tells(start, lambda runner: runner.train(batch.tensors, batch.weight, 1.0))
            self._device.set_weights(start)
            self._device.train(batch.tensors, batch.weight, 1.0)
            self._reference.set_weights(start)
            gradient = self._tape_gradient(batch.tensors, batch.weight)
            step = first_step(gradient, self._plan.local_training, rate=1.0)
            return self._weight_faults(start, start - step, told=told)

        return check

    def _kept_state(self, draw: Draw) -> list[str]:
        """Two rounds from different weights, the second with the state of the first."""
        size = self._plan.local_training.batch_size
        batches = [self._batch(draw, real=size) for _ in range(draw.steps(_STEPS))]
        starts = [draw.weights(self._initial, shaken=shaken) for shaken in (False, True)]
        rate, first = self._steady_rate(starts[0], batches[0]), batches[0]
        told = self._tells(starts[0], lambda runner: runner.train(first.tensors, first.weight, 1.0))
        for runner in (self._device, self._reference):
            assert runner.get_optimizer_state is not None
            assert runner.set_optimizer_state is not None
            runner.set_weights(starts[0])
            for batch in batches:
                runner.train(batch.tensors, batch.weight, rate)
            state = runner.get_optimizer_state()
            runner.set_weights(starts[1])
            runner.set_optimizer_state(state)
            if not np.array_equal(runner.get_optimizer_state(), state):
                return ["get_optimizer_state does not return what set_optimizer_state was given"]
            for batch in batches[:2]:
                runner.train(batch.tensors, batch.weight, rate)
        return self._weight_faults(starts[1], self._reference.get_weights(), told=told)

    def _private_step(self, *, real: int, broken: bool = False) -> Check:
        """DP-SGD steps with all examples clipped, some, and none; fed noise or none."""

        def check(draw: Draw) -> list[str]:
            start, batch = draw.weights(self._initial, shaken=True), self._batch(draw, real=real)
            spoiled = batch.break_an_example(self._examples.numbers) if broken else None
            if broken and spoiled is None:
                return []  # ids can not be broken
            noise = draw.rng.normal(size=self._layout.size).astype(np.float32)
            faults = []
            norm = self._gradient_norm(start, batch)
            settings = replace(self._plan.local_training, learning_rate=1.0)
            for clip_norm in (0.1 * norm, norm, 100.0 * norm):
                sensitivity = sensitivity_of_step(settings, clip_norm=clip_norm)
                for share in (np.zeros_like(noise), noise * np.float32(0.01 * sensitivity)):

                    def step(
                        runner: Runner, sensitivity: float = sensitivity, share: Float32 = share
                    ) -> None:
                        assert runner.train_dp is not None
                        runner.train_dp(batch.tensors, batch.weight, 1.0, sensitivity, share)

                    told = self._tells(start, step)
                    for runner in (self._device, self._reference):
                        runner.set_weights(start)
                        step(runner)
                    found = self._weight_faults(start, self._reference.get_weights(), told=told)
                    if found and spoiled is not None:
                        found = self._faults_of_a_whole(start, batch, spoiled, sensitivity)
                    faults += [f"clip norm {clip_norm:.3g}: {text}" for text in found]
            return faults

        return check

    def _faults_of_a_whole(
        self, start: Float32, batch: Batch, spoiled: int, sensitivity: float
    ) -> list[str]:
        """The same where the interpreter makes numbers of what example `spoiled` is broken by.

        XNNPACK's relu makes 0 of NaN: behind a frozen convolution nothing is broken any more.
        The example must then count as any other, by no more than the sensitivity and beside what
        the others add. With Adam at a sensitivity that leaves its first step in no saturation.
        """
        adam = self._gradients is not None
        settings = self._plan.local_training
        even = settings.epsilon / np.sqrt(1.0 - settings.beta_2)  # moves a weight by half the rate
        sensitivity = 0.1 * even if adam else sensitivity

        def summed(runner: Runner, weight: Float32) -> NDArray[np.float64]:
            assert runner.train_dp is not None
            runner.set_weights(start)
            runner.train_dp(batch.tensors, weight, 1.0, sensitivity, np.zeros_like(start))
            step = start.astype(np.float64) - runner.get_weights()
            return even * step / (1.0 - np.abs(step)) if adam else step

        alone = (np.arange(len(batch.weight)) == spoiled).astype(np.float32)
        added, both = (summed(self._device, weight) for weight in (alone, batch.weight))
        rounding = _WEIGHT_TOLERANCE * float(np.linalg.norm(start.astype(np.float64)))
        allowed = sensitivity * (1.0 + _UPDATE_TOLERANCE) + rounding * (even if adam else 1.0)
        norm = float(np.linalg.norm(added))
        if not norm <= allowed:
            return [f"a broken example adds {norm:.3g}, allowed is {sensitivity:.3g}"]
        off = float(np.linalg.norm(both - added - summed(self._reference, batch.weight - alone)))
        spare = (allowed - sensitivity) * (1.0 + float(np.sum(batch.weight)))
        return [] if off <= spare else [f"the others are off by {off:.3g}, allowed is {spare:.3g}"]

    def _private_tape(self, draw: Draw) -> list[str]:
        """One step from every example's own gradient, half of them clipped, and all."""
        size = self._plan.local_training.batch_size
        start = draw.weights(self._initial, shaken=True)
        batch = self._batch(draw, real=min(size, _EXAMPLES_ON_TAPE))
        gradients = self._gradients_of_each(start, batch)
        median = float(np.median(np.linalg.norm(gradients, axis=1)))
        fitting = replace(self._plan.local_training, learning_rate=_PRIVATE_RATE)
        sensitivity = sensitivity_of_step(fitting, clip_norm=median)
        noise = draw.rng.normal(scale=0.01 * sensitivity, size=start.size).astype(np.float32)
        faults = []
        for rate in (_PRIVATE_RATE, _RATE_OFF_BY * _PRIVATE_RATE):
            settings = replace(fitting, learning_rate=rate)
            step = np.asarray(
                noised_step(
                    gradients,
                    np.ones(len(gradients), np.float32),
                    scale=scale_of_gradients(settings),
                    sensitivity=sensitivity,
                    noise=noise,
                ),
                np.float32,
            )
            moved = step if rate_before_noise(settings) else first_step(step, settings, rate=rate)
            self._device.set_weights(start)
            assert self._device.train_dp is not None
            self._device.train_dp(batch.tensors, batch.weight, rate, sensitivity, noise)
            found = self._weight_faults(start, start - moved, told=self._told(step))
            faults += [f"learning rate {rate:g}: {text}" for text in found]
        return faults

    def _gradients_of_each(self, start: Float32, batch: Batch) -> Float32:
        """Of each real example, a batch of its own: float32 [number, d]."""
        self._reference.set_weights(start)
        rows = [
            {name: np.asarray(values)[i : i + 1] for name, values in batch.tensors.items()}
            for i in np.flatnonzero(batch.weight)
        ]
        return np.stack([self._gradient_of_one(row, np.ones(1, np.float32)) for row in rows])

    def _gradient_norm(self, start: Float32, batch: Batch) -> float:
        """The norm of the batch's mean gradient, or 1: a scale for clip norms."""
        self._reference.set_weights(start)
        self._reference.train(batch.tensors, batch.weight, 1.0)
        norm = float(np.linalg.norm(self._reference.get_weights() - start))
        return norm if np.isfinite(norm) and norm > 0 else 1.0

    def _training_faults(self, start: Float32, batches: list[Batch], rate: float) -> list[str]:
        first = batches[0]
        told = self._tells(start, lambda runner: runner.train(first.tensors, first.weight, 1.0))
        losses = []
        for runner in (self._device, self._reference):
            runner.set_weights(start)
            losses.append([runner.train(b.tensors, b.weight, rate) for b in batches])
        faults = self._weight_faults(start, self._reference.get_weights(), told=told)
        ours_losses, true_losses = losses
        if not faults and not np.allclose(
            ours_losses, true_losses, rtol=_OUTPUT_TOLERANCE, atol=1e-6
        ):
            faults.append(f"the loss is {ours_losses} instead of {true_losses}")
        return faults

    def _tells(self, start: Float32, step: Callable[[Runner], Any]) -> Float32:
        """1 for each weight whose `step` from `start` tells right from wrong, float32 [d]."""
        if self._gradients is None:
            return np.ones_like(start)
        self._gradients.set_weights(start)
        step(self._gradients)
        return self._told(self._gradients.get_weights() - start)

    def _told(self, step: Float32) -> Float32:
        """The same of a `step` of plain SGD, float32 [d]."""
        if self._gradients is None:
            return np.ones_like(step)
        gradient = np.abs(step)
        least = _SMALL_IN_MODEL * np.max(gradient)
        parts = self._layout.split(gradient)
        return self._layout.join([p > max(least, _SMALL_IN_VARIABLE * np.max(p)) for p in parts])

    def _weight_faults(self, start: Float32, reference: Float32, *, told: Float32) -> list[str]:
        """Variables that the device has moved from `start` otherwise than to `reference`.

        Looked at are the weights that `told` (float32 [d]) is 1 for.
        """
        device = self._device.get_weights()
        if not np.isfinite(reference).all():
            return ["TensorFlow itself gets weights that are not finite"]
        device, reference = (np.where(told, moved, start) for moved in (device, reference))
        faults = []
        cancelled = _CANCELLATION_TOLERANCE * float(np.max(np.abs(reference - start)))
        rows = zip(*(self._layout.split(flat) for flat in (device, reference, start)))
        for index, (ours, theirs, before) in enumerate(rows):
            largest_step = float(np.max(np.abs(theirs - before)))
            largest_weight = float(np.max(np.abs(theirs)))
            allowed = _UPDATE_TOLERANCE * largest_step + _WEIGHT_TOLERANCE * largest_weight
            allowed += cancelled
            error = float(np.max(np.abs(ours - theirs)))
            if not error <= allowed:
                layer = layer_of_variable(self._model, index)
                name = self._layout.names[index]
                faults.append(f"{layer}, {name}: off by {error:.3g}, allowed is {allowed:.3g}")
        return faults

    def _steady_rate(self, start: Float32, batch: Batch) -> float:
        """A learning rate whose steps move the weights by a few percent.

        The plan's rate may diverge on random data, and there rounding grows.
        """
        self._reference.set_weights(start)
        self._reference.train(batch.tensors, batch.weight, 1.0)
        step = float(np.linalg.norm(self._reference.get_weights() - start))
        reach = _PART_MOVED_PER_STEP * max(1.0, float(np.linalg.norm(start)))
        return min(1.0, reach / step) if step > 0 else 1.0

    def _batch(self, draw: Draw, *, real: int) -> Batch:
        return draw.batch(self._examples, size=self._plan.local_training.batch_size, real=real)
