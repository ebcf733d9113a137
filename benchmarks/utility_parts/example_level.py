"""Central training with a guarantee for every example: a linear model on scattering features."""

from __future__ import annotations

import os
import time
from typing import Any

import numpy as np
from splits import DELTA, Split, split_of
from statements import of_central_training

BATCH, STEPS = 8192, 293
MOMENT_NOISE = 7.0
CLIP_NORM, MOMENTUM = 0.1, 0.9
RATES = {3.0: 8.0, 2.0: 4.0, 1.0: 2.0}
TARGETS = {3.0: 0.905, 2.0: 0.900, 1.0: 0.893}
PUBLISHED = {3.0: 0.897}  # Tramer & Boneh 2011.11660, scattering and a linear model
AVERAGE = 0.95


def load(*, held_out: bool) -> Split:
    """Fashion-MNIST's features; with `held_out` the last training images are the test."""
    from features import preconditioned, preconditioner, symmetric_features

    from tf_dpfl.data.fashion_mnist import find_fashion_mnist

    found, matrix = find_fashion_mnist(), preconditioner()

    def features(name: str, images: np.ndarray) -> np.ndarray:
        return preconditioned(symmetric_features(name, images.reshape(-1, 28, 28)), matrix)

    train = features("train", found.train_x), found.train_y
    return split_of(
        train, lambda: (features("test", found.test_x), found.test_y), held_out=held_out
    )


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
    from running_mean import fit_to_mean

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
    mean = fit_to_mean(
        private,
        (x, y),
        optimizer=tf.keras.optimizers.SGD(rate, momentum=MOMENTUM),
        batch_size=BATCH,
        steps=STEPS,
        decay=average,
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
        "accuracy": accuracy(mean[0]),
        "seconds": time.monotonic() - started,
        "privacy": of_central_training(statement),
    }
