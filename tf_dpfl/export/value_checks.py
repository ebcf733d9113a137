"""The comparisons of a client file that look at values alone: no gradient is in them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import tensorflow as tf

from tf_dpfl.client_work.computation import layout_of
from tf_dpfl.export.draws import Check, Draw
from tf_dpfl.export.random_examples import RandomExamples
from tf_dpfl.export.runners import Runner
from tf_dpfl.protocol.clipping import clip_update
from tf_dpfl.protocol.plan import Plan
from tf_dpfl.protocol.tensors import Float32

_OUTPUT_TOLERANCE = 1e-4


class ValueChecks:
    """Weights in and out, inference, and the report; each check gives a draw's faults."""

    def __init__(
        self, device: Runner, reference: Runner, model: tf.keras.Model, plan: Plan
    ) -> None:
        self._device, self._reference, self._plan = device, reference, plan
        self._layout = layout_of(model)
        self._initial = reference.get_weights()
        self._examples = RandomExamples(model, plan.local_training)

    def named(self) -> Iterator[tuple[str, Check]]:
        """The checks with their names."""
        yield "setting and getting weights", self._round_trip
        for start, shaken in (("the initial", False), ("shaken", True)):
            yield f"inference with {start} weights", self._inference(shaken=shaken)
        yield "clipping and noising", self._report

    def _round_trip(self, draw: Draw) -> list[str]:
        weights = draw.rng.normal(size=self._layout.size).astype(np.float32)
        size = self._device.set_weights(weights)
        if size != self._layout.size:
            return [f"set_weights returns {size}, the model has {self._layout.size} weights"]
        if not np.array_equal(self._device.get_weights(), weights):
            return ["get_weights does not return what set_weights was given"]
        return []

    def _inference(self, *, shaken: bool) -> Check:
        def check(draw: Draw) -> list[str]:
            start = draw.weights(self._initial, shaken=shaken)
            self._device.set_weights(start)
            self._reference.set_weights(start)
            for count in (1, 3):  # any number of examples
                inputs = self._examples.inputs(draw.rng, count)
                ours, theirs = self._device.infer(inputs), self._reference.infer(inputs)
                fault = _difference("the logits are", ours, theirs, _OUTPUT_TOLERANCE)
                if fault:
                    return fault
            return []

        return check

    def _report(self, draw: Draw) -> list[str]:
        """Small, large, zero and broken updates; clip norms around them; fed noise."""
        size, initial = self._layout.size, self._initial
        direction = draw.rng.normal(size=size).astype(np.float32)
        broken = {value: direction.copy() for value in (np.nan, np.inf)}
        for value, update in broken.items():
            update[size // 2] = value
        updates = {
            "a random update": direction,
            "a zero update": np.zeros(size, np.float32),
            "an update with NaN": broken[np.nan],
            "an update with infinity": broken[np.inf],
            "an update of a huge norm": direction * np.float32(1e30),
        }
        noise = draw.rng.normal(size=size).astype(np.float32)
        norm = float(np.linalg.norm(direction.astype(np.float64)))
        faults = []
        for name, update in updates.items():
            current = initial + update
            for clip_norm in (0.01 * norm, 100 * norm, self._plan.privacy.clip_norm):
                for added in (np.zeros_like(noise), noise):
                    fault = self._report_faults(current, clip_norm=clip_norm, noise=added)
                    faults += [f"{name}, clip norm {clip_norm:.3g}: {text}" for text in fault]
        return faults

    def _report_faults(self, current: Float32, *, clip_norm: float, noise: Float32) -> list[str]:
        self._device.set_weights(current)
        self._reference.set_weights(current)
        ours = self._device.privatize_update(self._initial, clip_norm, noise)
        theirs = self._reference.privatize_update(self._initial, clip_norm, noise)
        expected = noise + clip_update(
            current - self._initial,
            clip_norm=clip_norm,
            clipping=self._plan.privacy.clipping,
            layout=self._layout,
        )
        faults = _difference("the report is", ours, theirs, 1e-5)
        faults += _difference("against protocol.clipping the report is", ours, expected, 1e-5)
        norm = float(np.linalg.norm(ours.astype(np.float64)))
        if not noise.any() and not norm <= np.float32(clip_norm):
            faults.append(f"the report has the norm {norm:.9g}, above the clip norm")
        return faults


def _difference(what: str, ours: Float32, theirs: Float32, tolerance: float) -> list[str]:
    """A fault unless `ours` equals `theirs` up to `tolerance` of its largest entry."""
    if ours.shape != theirs.shape:
        return [f"{what} of shape {ours.shape} instead of {theirs.shape}"]
    allowed = tolerance * float(np.max(np.abs(theirs), initial=0.0)) + 1e-7
    with np.errstate(invalid="ignore"):  # infinity minus infinity is NaN, and NaN a fault
        error = float(np.max(np.abs(ours - theirs), initial=0.0))
    return [] if error <= allowed else [f"{what} off by {error:.3g}, allowed is {allowed:.3g}"]
