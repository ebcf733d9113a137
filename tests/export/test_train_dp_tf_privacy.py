"""Twenty steps of DP-SGD, in the file and in the simulation, against tensorflow-privacy's.

All three are fed the same noise. tensorflow-privacy clips, adds the noise to the sum of
the gradients, divides by the batch size and lets Keras' optimizer take the rest.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from export_bench import on_each_interpreter, plan_of
from keras_oracle import LOSS, flat, median_norm, set_flat
from layer_models import LAYERS
from tensorflow_privacy.privacy.dp_query.gaussian_query import GaussianSumQuery
from tensorflow_privacy.privacy.optimizers.dp_optimizer_keras import (
    make_keras_generic_optimizer_class,
)

from tf_dpfl.client_work.computation import ClientComputation
from tf_dpfl.export.client import build_client_tflite
from tf_dpfl.export.random_examples import RandomExamples

BATCH, STEPS, RATE = 4, 20, 0.05
LEGACY = tf.keras.optimizers.legacy
KERAS: dict[str, Any] = {
    "sgd": (LEGACY.SGD, {}, RATE / BATCH),
    "momentum": (LEGACY.SGD, {"momentum": 0.9}, 1 / BATCH),
    # Far above the rounding of a gradient: Adam makes no step of that.
    "adam": (LEGACY.Adam, {"epsilon": 1e-2}, 1 / BATCH),
}


class FedNoise(GaussianSumQuery):
    """The sum of clipped gradients, with the given noise in place of a drawn one."""

    def __init__(self, clip_norm: float, shares: list[list[np.ndarray]]):
        super().__init__(clip_norm, 1.0)
        self._shares = iter(shares)

    def get_noised_result(self, sample_state: Any, global_state: Any) -> Any:
        noised = [total + share for total, share in zip(sample_state, next(self._shares))]
        return noised, global_state, None


@pytest.mark.parametrize(
    ("layer", "optimizer"),
    [
        ("embedding", "sgd"),
        ("conv2d of three rows", "sgd"),
        ("conv1d strided", "momentum"),
        ("embedding", "adam"),
    ],
)
def test_twenty_steps_are_tensorflow_privacys(layer: str, optimizer: str) -> None:
    cls, arguments, scale = KERAS[optimizer]
    model, rng = LAYERS[layer](), np.random.default_rng(5)
    epsilon = {"epsilon": 1e-2} if optimizer == "adam" else {}
    plan = plan_of(
        batch_size=BATCH,
        unit="example",
        delta=1e-4,
        local_training={"optimizer": optimizer, **epsilon},
    )
    computation = ClientComputation(model, plan.local_training)
    start, split = flat(model.trainable_variables).astype(np.float32), computation.layout.split
    examples = RandomExamples(model, plan.local_training)
    batches = [examples.batch(rng, BATCH) for _ in range(STEPS)]
    clip_norm = median_norm(model, batches[0])
    spread = 0.3 * clip_norm / np.sqrt(start.size)
    noises = [np.float32(spread * rng.normal(size=start.shape)) for _ in batches]

    query = FedNoise(clip_norm, [split(noise) for noise in noises])
    keras = make_keras_generic_optimizer_class(cls)(query, BATCH, learning_rate=RATE, **arguments)
    keras_loss = type(LOSS)(from_logits=True, reduction=tf.keras.losses.Reduction.NONE)
    for batch in batches:

        def losses(batch: Any = batch) -> Any:
            return keras_loss(batch["y"], model(batch["x"], training=True))

        tape = tf.GradientTape(persistent=True)
        keras.minimize(losses, model.trainable_variables, tape=tape)
    want = flat(model.trainable_variables)
    assert np.linalg.norm(want - start) > 1e-2

    set_flat(model, start)
    ones, sensitivity = np.ones(BATCH, np.float32), np.float32(scale * clip_norm)
    given = [(batch, noise * np.float32(scale)) for batch, noise in zip(batches, noises)]
    for device in on_each_interpreter(build_client_tflite(model, plan), model, plan):
        device.set_weights(start)
        for batch, noise in given:
            device.train_dp(batch, ones, RATE, sensitivity, noise)
        assert_equal(device.get_weights(), want, start)

    step = tf.function(computation.train_dp_batch, autograph=False)
    tf.function(computation.set_weights, autograph=False)(start)
    for batch, noise in given:
        tensors = {name: tf.constant(values) for name, values in batch.items()}
        step(tensors, ones, np.float32(RATE), sensitivity, split(noise))
    assert_equal(flat(model.trainable_variables), want, start)


def assert_equal(ours: Any, theirs: Any, start: Any) -> None:
    assert np.linalg.norm(ours - theirs) <= 1e-5 * np.linalg.norm(theirs)
    assert np.linalg.norm(ours - theirs) <= 1e-3 * np.linalg.norm(theirs - start)
