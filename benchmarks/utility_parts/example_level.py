"""Central training with a guarantee for every example: a linear model on scattering features."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

DELTA = 1e-5
BATCH, STEPS = 8192, 293
MOMENT_NOISE = 7.0
CLIP_NORM, MOMENTUM = 0.1, 0.9
RATES = {3.0: 8.0, 2.0: 4.0, 1.0: 2.0}
HELD_OUT = 10_000  # of the training images, to choose settings on


@dataclass(frozen=True)
class Split:
    """Features and labels to train on and to be judged by."""

    train: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]


def load(*, held_out: bool) -> Split:
    """Fashion-MNIST; with `held_out` the last training images are the test."""
    from features import preconditioned, preconditioner, symmetric_features

    from tf_dpfl.data.fashion_mnist import find_fashion_mnist

    found, matrix = find_fashion_mnist(), preconditioner()

    def features(name: str, images: np.ndarray) -> np.ndarray:
        return preconditioned(symmetric_features(name, images.reshape(-1, 28, 28)), matrix)

    train = features("train", found.train_x), found.train_y
    if held_out:
        kept = len(train[0]) - HELD_OUT
        return Split(tuple(a[:kept] for a in train), tuple(a[kept:] for a in train))
    return Split(train, (features("test", found.test_x), found.test_y))


def step_noise(epsilon: float, *, probability: float) -> float:
    """The least noise of the steps with which they and the second moment keep to epsilon."""
    from tf_dpfl.central.statement import steps_of_dp_sgd
    from tf_dpfl.privacy.accounting import central_epsilon

    moment = steps_of_dp_sgd(noise_multiplier=MOMENT_NOISE, sampling_probability=1.0, steps=1)

    def total(noise: float) -> float:
        steps = steps_of_dp_sgd(
            noise_multiplier=noise, sampling_probability=probability, steps=STEPS
        )
        return central_epsilon([moment, steps], delta=DELTA)

    low, high = 0.5, 64.0
    while high / low > 1.001:
        middle = (low * high) ** 0.5
        low, high = (low, middle) if total(middle) <= epsilon else (middle, high)
    return high


def train(split: Split, epsilon: float, *, rate: float, average: float) -> dict[str, Any]:
    """One private training; returns the row of the table.

    Args:
      average: decay of the running mean of the weights that is judged, post-processing.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import tensorflow as tf
    from features import private_second_moment, shrinking, shrunk

    import tf_dpfl
    from tf_dpfl.central.statement import state_privacy, steps_of_dp_sgd

    started = time.monotonic()
    (x, y), (test_x, test_y) = split.train, split.test
    noise = step_noise(epsilon, probability=BATCH / len(x))
    moment = private_second_moment(x, noise_multiplier=MOMENT_NOISE)
    directions, factors = shrinking(moment, noise_multiplier=MOMENT_NOISE)
    x, test_x = shrunk(x, directions, factors), shrunk(test_x, directions, factors)
    layers = tf.keras.layers
    model = tf.keras.Sequential(
        [
            layers.InputLayer(x.shape[1]),
            layers.Dense(10, use_bias=False, kernel_initializer="zeros"),
        ]
    )
    private = tf_dpfl.DPModel(model, clip_norm=CLIP_NORM, delta=DELTA, noise_multiplier=noise)
    private.compile(
        tf.keras.optimizers.SGD(rate, momentum=MOMENTUM),
        loss=tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    mean = RunningMean(average)
    private.fit(
        x, y, batch_size=BATCH, steps_per_epoch=STEPS, callbacks=[mean.callback()], verbose=0
    )

    def accuracy(weights: np.ndarray) -> float:
        return float(np.mean((test_x @ weights).argmax(axis=1) == test_y))

    released = steps_of_dp_sgd(noise_multiplier=MOMENT_NOISE, sampling_probability=1.0, steps=1)
    spending = [released, *private.privacy().spending]
    statement = state_privacy(spending, delta=DELTA, clip_norm=CLIP_NORM)
    return {
        "epsilon_asked": epsilon,
        "epsilon": statement.epsilon,
        "noise": noise,
        "rate": rate,
        "directions": directions.shape[1],
        "accuracy_last": accuracy(model.get_weights()[0]),
        "accuracy": accuracy(mean.weights),
        "seconds": time.monotonic() - started,
    }


class RunningMean:
    """Exponentially weighted mean of the weights after each step, without its start's bias."""

    def __init__(self, decay: float):
        self._decay, self._steps = decay, 0
        self._total: Any = 0.0

    def callback(self) -> Any:
        """What `fit` calls after every step."""
        import tensorflow as tf

        def add(batch: int, logs: Any) -> None:  # noqa: ARG001  Keras' signature
            (weights,) = callback.model.get_weights()
            self._total = self._decay * self._total + (1 - self._decay) * weights
            self._steps += 1

        callback = tf.keras.callbacks.LambdaCallback(on_train_batch_end=add)
        return callback

    @property
    def weights(self) -> np.ndarray:
        """The mean so far."""
        return self._total / (1 - self._decay**self._steps)
