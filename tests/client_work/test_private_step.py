"""A step of DP-SGD in TensorFlow: the bound at any learning rate, and the noise, taken once."""

import functools
import itertools
import math

import numpy as np
import per_example_models as cases
import pytest
import tensorflow as tf

from tf_dpfl.client_work.computation import ClientComputation
from tf_dpfl.client_work.local_training import PrivateSteps, train_locally
from tf_dpfl.protocol.plan import LocalTraining
from tf_dpfl.protocol.private_step import noised_step, sensitivity_of_step
from tf_dpfl.protocol.step_scale import rate_before_noise, scale_of_gradients

B = cases.BATCH
METHODS = ["one_pass", "loop"]
OPTIMIZERS = {
    "sgd": {},
    "proximal": {"proximal": 0.3},
    "momentum": {"optimizer": "momentum"},
    # Far above the rounding of a gradient: Adam makes no step of that.
    "adam": {"optimizer": "adam", "epsilon": 1e-3},
}
RATES = [0.0, 1e-6, 0.1, 1.0, 1e6, 3e38, math.inf, -math.inf, -1.0, math.nan]


def settings_of(name, rate=0.1):
    return LocalTraining(1, B, rate, **OPTIMIZERS[name])


def weights_of(model):
    return np.concatenate([v.numpy().reshape(-1) for v in model.trainable_variables])


class Stepper:
    """Steps of one model from its first weights, each with a fresh optimizer."""

    def __init__(self, name, method="one_pass", spread=1.0):
        self.model = cases.built(cases.ONE_PASS["mlp"])
        self.batch = cases.batch_for(self.model)
        if spread != 1.0:
            self.batch["x"] = np.float32(spread * self.batch["x"])
        self.start, self.settings = weights_of(self.model), settings_of(name)
        self.computation = ClientComputation(self.model, self.settings, dp_method=method)

        @tf.function(autograph=False)
        def run(batch, weight, rate, sensitivity, noise):
            with tf.control_dependencies([self.computation.set_weights(self.start)]):
                noise = self.computation.split(tf.identity(noise))
            done = self.computation.train_dp_batch(batch, weight, rate, sensitivity, noise)
            with tf.control_dependencies([done]):
                kept = self.computation.get_optimizer_state() if self.momenta else tf.zeros([0])
                return self.computation.get_weights(), kept

        self.momenta = self.settings.optimizer != "sgd"
        self._run = run

    def __call__(self, rate, sensitivity, noise=None, weight=(1,) * B):
        """The weights afterwards, and the optimizer's state."""
        noise = np.zeros_like(self.start) if noise is None else noise
        scalars = [tf.constant(value, tf.float32) for value in (rate, sensitivity)]
        batch = {name: tf.constant(values) for name, values in self.batch.items()}
        moved, kept = self._run(batch, tf.constant(weight, tf.float32), *scalars, noise)
        return moved.numpy(), kept.numpy()

    def gradients(self):
        """Of each example at the first weights, float64 [B, d]."""
        for variable, value in zip(
            self.model.trainable_variables, self.computation.layout.split(self.start)
        ):
            variable.assign(value)
        return cases.gradient_of_each(self.model, self.batch)

    def step(self, *args, **keys):
        """What was noised, as the first step of each optimizer tells it, float64 [d]."""
        moved, kept = self(*args, **keys)
        size = len(self.start)
        if self.settings.optimizer == "momentum":
            return kept.astype(np.float64)
        if self.settings.optimizer == "adam":
            return kept[:size].astype(np.float64) / (1 - self.settings.beta_1)
        rate = 1.0 if rate_before_noise(self.settings) else args[0]
        return (self.start.astype(np.float64) - moved) / rate


@functools.cache
def stepper_of(name, method="one_pass", spread=1.0):
    """Traced once: nothing is left of a step in the next."""
    return Stepper(name, method, spread=spread)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("spread", [0.0, 1.0, 1e6])
def test_one_example_moves_the_weights_by_at_most_the_sensitivity(method, rate, spread):
    """Plain SGD, whatever learning rate is passed, also one that says more than the noise."""
    stepper, sensitivity = stepper_of("sgd", method, spread=spread), 1e-2
    without = (1, 1, 0, 1, 1, 1)
    whole, others = (stepper(rate, sensitivity, weight=w)[0] for w in ((1,) * B, without))
    moved = np.linalg.norm(whole.astype(np.float64) - others)
    rounding = 2e-7 * np.linalg.norm(stepper.start)
    assert moved <= sensitivity + rounding
    if rate >= 1.0 and spread:
        assert moved > 0.99 * sensitivity
    if not rate > 0:
        assert moved == 0


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["momentum", "adam"])
@pytest.mark.parametrize("rate", [0.0, 0.1, 1e6])
def test_one_example_moves_what_other_optimizers_take_by_at_most_the_sensitivity(
    method, name, rate
):
    stepper = stepper_of(name, method, spread=1e4)
    whole, others = (stepper.step(rate, 1e-2, weight=w) for w in ((1,) * B, (1, 1, 0, 1, 1, 1)))
    assert 0.99e-2 < np.linalg.norm(whole - others) <= 1e-2 * (1 + 1e-5)


@pytest.mark.parametrize("rate", [0.0, 0.1, 1.0, 1e4])
@pytest.mark.parametrize("method", METHODS)
def test_the_noise_is_taken_off_the_weights_once_and_as_it_is(method, rate):
    """To the bit: neither the learning rate nor the batch size is in it."""
    stepper = stepper_of("sgd", method)
    noise = np.random.default_rng(3).normal(size=stepper.start.size).astype(np.float32)
    moved, _ = stepper(rate, 1e-2, noise, weight=(0,) * B)
    np.testing.assert_array_equal(moved, stepper.start - noise)


@pytest.mark.parametrize("name", ["proximal", "momentum", "adam"])
def test_other_optimizers_take_the_noise_for_a_gradient(name):
    stepper = stepper_of(name)
    noise = np.random.default_rng(3).normal(size=stepper.start.size).astype(np.float32)
    got = stepper.step(0.5, 1e-2, noise, weight=(0,) * B)
    np.testing.assert_allclose(got, noise, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("off", [1.0, 0.1, 10.0])
def test_the_step_is_that_of_numpy(method, name, off):
    """Half of the gradients clipped; the sensitivity also of another clip norm than the rate's."""
    stepper = stepper_of(name, method)
    gradients = stepper.gradients()
    clip_norm = float(np.median(np.linalg.norm(gradients, axis=1)))
    sensitivity = off * sensitivity_of_step(stepper.settings, clip_norm=clip_norm)
    noise = np.random.default_rng(1).normal(scale=sensitivity / 9, size=stepper.start.size)
    weight = np.float32([1, 1, 0, 1, 1, 1])
    scale = scale_of_gradients(stepper.settings)
    given = {"sensitivity": sensitivity, "noise": np.float32(noise)}
    want = noised_step(np.float32(gradients), weight, scale=scale, **given)
    got = stepper.step(0.1, given["sensitivity"], given["noise"], weight=weight)
    np.testing.assert_allclose(got, want, atol=1e-5 * np.abs(want).max() + 1e-6)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("broken", [np.nan, np.inf, 1e38])
def test_a_broken_example_adds_nothing_and_the_others_as_ever(method, broken):
    stepper = Stepper("sgd", method)
    without = stepper(0.1, 1e-2, weight=(1, 1, 0, 1, 1, 1))[0]
    stepper.batch["x"][2] = broken
    np.testing.assert_array_equal(stepper(0.1, 1e-2)[0], without)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_local_training_gives_each_step_its_own_noise(name):
    """Two epochs of two batches, the second padded, one example at a time in NumPy."""
    model = cases.built(cases.ONE_PASS["mlp"])
    settings = LocalTraining(2, B, 0.1, **OPTIMIZERS[name])
    computation = ClientComputation(model, settings)
    examples, count = cases.batch_for(model, 2 * B), 2 * B - 2
    noises = np.random.default_rng(4).normal(scale=1e-2, size=(4, computation.layout.size))
    noises = noises.astype(np.float32)
    sensitivity = sensitivity_of_step(settings, clip_norm=0.7)
    start = weights_of(model)

    @tf.function(autograph=False)
    def run():
        computation.set_weights(start)
        private = PrivateSteps(
            tf.constant(sensitivity), lambda step: tf.gather(tf.constant(noises), step)
        )
        values = {key: tf.constant(a) for key, a in examples.items()}
        train_locally(computation, values, tf.constant(count), settings=settings, private=private)
        return computation.get_weights()

    got = run().numpy()
    stepper, used = Oracle(model, settings, start), iter(noises)
    for begin in itertools.chain(*[range(0, 2 * B, B)] * 2):
        rows = {key: a[begin : min(begin + B, count)] for key, a in examples.items()}
        stepper.step(rows, sensitivity, next(used))
    assert next(used, None) is None
    np.testing.assert_allclose(got, stepper.weights, atol=2e-5)
    assert np.abs(got - start).max() > 1e-2


class Oracle:
    """The optimizers of `client_work.optimizers` once more, in float64, on NumPy's step."""

    def __init__(self, model, settings, start):
        self._model, self._settings = model, settings
        self._start = self.weights = start.astype(np.float64)
        self._mean, self._square, self._count = 0.0, 0.0, 0

    def step(self, rows, sensitivity, noise):
        begin, s = 0, self._settings
        for variable in self._model.trainable_variables:
            size = math.prod(variable.shape)
            variable.assign(np.reshape(self.weights[begin : begin + size], variable.shape))
            begin += size
        gradients = np.float32(cases.gradient_of_each(self._model, rows))
        scale = scale_of_gradients(s)
        step = noised_step(
            gradients,
            np.ones(len(gradients), np.float32),
            scale=scale,
            sensitivity=sensitivity,
            noise=noise,
        )
        if rate_before_noise(s):
            self.weights = self.weights - step
            return
        step = step + s.proximal * (self.weights - self._start)
        self._count += 1
        if s.optimizer == "adam":
            self._mean = s.beta_1 * self._mean + (1 - s.beta_1) * step
            self._square = s.beta_2 * self._square + (1 - s.beta_2) * step**2
            rate = s.learning_rate * math.sqrt(1 - s.beta_2**self._count)
            rate /= 1 - s.beta_1**self._count
            self.weights = self.weights - rate * self._mean / (np.sqrt(self._square) + s.epsilon)
            return
        self._mean = (s.momentum if s.optimizer == "momentum" else 0.0) * self._mean + step
        self.weights = self.weights - s.learning_rate * self._mean
