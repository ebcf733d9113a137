"""Rounds of the TFF process, and the readable loop that they are held to."""

import numpy as np
import tensorflow as tf

from tf_dpfl.protocol.clipping import clip_by_global_norm
from tf_dpfl.simulation.process import build_learning_process
from tf_dpfl.simulation.shard import make_shards

USERS = np.array([3, 5, 8, 13, 21, 34, 35], np.int64)


def flat(weights):
    return np.concatenate([np.asarray(w).ravel() for w in weights.trainable])


def one_round(plan, model, data, users=USERS, rounds=1, noise_seed=None):
    process = build_learning_process(plan, model, data, noise_seed=noise_seed)
    state = process.initialize()
    for _ in range(rounds):
        output = process.next(state, make_shards(data, users, plan))
        state = output.state
    return flat(process.get_model_weights(state)), output.metrics


def start(model):
    return np.concatenate([v.numpy().ravel() for v in model.trainable_variables])


def clipped_update(plan, model, x, y):
    """One user's clipped update by a readable loop."""
    local = tf.keras.models.clone_model(model)
    local.set_weights(model.get_weights())
    optimizer = tf.keras.optimizers.legacy.SGD(plan.local_training.learning_rate)
    loss = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    size = plan.local_training.batch_size
    for _ in range(plan.local_training.epochs):
        for begin in range(0, len(y), size):
            with tf.GradientTape() as tape:
                value = loss(y[begin : begin + size], local(x[begin : begin + size]))
            gradients = tape.gradient(value, local.trainable_variables)
            optimizer.apply_gradients(zip(gradients, local.trainable_variables))
    return clip_by_global_norm(start(local) - start(model), clip_norm=plan.privacy.clip_norm)
