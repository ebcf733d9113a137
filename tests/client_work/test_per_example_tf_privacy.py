"""Clipped gradient sums against tensorflow-privacy's optimizers, without noise."""

import numpy as np
import per_example_models as cases
import pytest
import tensorflow as tf
from tensorflow_privacy.privacy.optimizers import (
    dp_optimizer_keras,
    dp_optimizer_keras_vectorized,
)

NAMES = "mlp cnn embedding lstm masked_gru attention layer_norm group_norm tied depthwise".split()
OPTIMIZERS = {
    "microbatches": dp_optimizer_keras.DPKerasSGDOptimizer,
    "vectorized": dp_optimizer_keras_vectorized.VectorizedDPKerasSGDOptimizer,
}


def step_of(model, batch, clip_norm, optimizer):
    """What one step of learning rate 1 takes off the weights, times the batch size."""

    def weights():
        return np.concatenate([v.numpy().reshape(-1) for v in model.trainable_variables])

    def losses():
        return tf.nn.sparse_softmax_cross_entropy_with_logits(
            batch["y"], model(batch["x"], training=True)
        )

    before = weights()
    dp = OPTIMIZERS[optimizer](
        l2_norm_clip=clip_norm,
        noise_multiplier=0.0,
        num_microbatches=cases.BATCH,
        learning_rate=1.0,
    )
    dp.minimize(losses, model.trainable_variables, tape=tf.GradientTape(persistent=True))
    return (before.astype(np.float64) - weights()) * cases.BATCH


@pytest.mark.parametrize(
    ("name", "optimizer"),
    [(name, "microbatches") for name in NAMES] + [("mlp", "vectorized"), ("cnn", "vectorized")],
)
def test_one_pass_is_tensorflow_privacys_sum(name, optimizer):
    model = cases.built(cases.ONE_PASS[name])
    batch = cases.batch_for(model)
    norms = np.linalg.norm(cases.gradient_of_each(model, batch), axis=1)
    clip_norm = float(np.median(norms))
    got = cases.clipped_sum(model, batch, np.ones(cases.BATCH), clip_norm, "one_pass")
    want = step_of(model, batch, clip_norm, optimizer)
    assert np.abs(got - want).max() / np.abs(want).max() < 5e-5
