"""Users of a dense network trained in blocks, held to training each by itself."""

import numpy as np
import pytest
import tensorflow as tf

from tf_dpfl.client_work.computation import ClientComputation
from tf_dpfl.client_work.dense_users import DenseNet, NotDenseError, train_users, users_of_a_block
from tf_dpfl.client_work.local_training import train_locally
from tf_dpfl.protocol.clipping import clip_by_global_norm
from tf_dpfl.protocol.plan import LocalTraining

L = tf.keras.layers
FEATURES, CLASSES, EXAMPLES, BATCH = 30, 3, 12, 4
COUNTS = [12, 7, 4, 1, 0]


def dense_model():
    return tf.keras.Sequential(
        [L.InputLayer([5, 6, 1]), L.Flatten(), L.Dense(20, "tanh"), L.Dense(CLASSES)]
    )


def branches():
    """Two low-rank kernels, a kernel that is no layer's first one, a rest that is frozen."""
    image = tf.keras.Input([5, 6, 1])
    flat = L.Flatten()(image)
    left, right = L.Dense(20, "relu")(flat), L.Dense(20, use_bias=False)(flat)
    frozen = L.Dense(8, trainable=False)(left)
    joined = L.Concatenate()([L.Dense(6, "gelu")(left), right, frozen])
    return tf.keras.Model(image, L.Dense(CLASSES)(joined))


def dropout():
    layers = [L.InputLayer([5, 6, 1]), L.Flatten(), L.Dense(20, "relu"), L.Dropout(0.5)]
    return tf.keras.Sequential([*layers, L.Dense(CLASSES)])


def settings(**changes):
    return LocalTraining(**{"epochs": 2, "batch_size": BATCH, "learning_rate": 0.3, **changes})


def examples_of(users, seed=0):
    random = np.random.default_rng(seed)
    x = random.normal(size=(users, EXAMPLES, 5, 6, 1)).astype(np.float32)
    return x, random.integers(0, CLASSES, (users, EXAMPLES)).astype(np.int32)


def flat(tensors):
    return np.concatenate([np.asarray(t).ravel() for t in tensors])


def uniforms(users, values):
    return np.random.default_rng(9).random((users, 10, BATCH, values)).astype(np.float32)


def one_by_one(model, how, x, y, counts):
    """The update of every user, by `train_locally`."""
    computation = ClientComputation(model, how)
    start = flat(model.trainable_variables)
    values = computation.interface.random_values
    table = tf.constant(uniforms(len(counts), values))

    @tf.function(autograph=False)
    def run(x, y, count, user):
        computation.set_weights(start)
        random = (lambda step: table[user, step]) if values else None
        train_locally(computation, {"x": x, "y": y}, count, settings=how, random=random)
        return computation.update(start)

    updates = [run(x[u], y[u], tf.constant(c), u).numpy() for u, c in enumerate(counts)]
    computation.set_weights(start)  # the model's own variables were trained
    return updates


def in_a_block(model, how, x, y, counts, clip_norm):
    """(sum of the clipped updates, who is broken, squared norms, who is not clipped)."""
    computation = ClientComputation(model, how)
    net = DenseNet(computation, how, examples=EXAMPLES)
    start = [tf.constant(v.numpy()) for v in model.trainable_variables]
    values = computation.interface.random_values
    table = tf.constant(uniforms(len(counts), values))

    @tf.function(autograph=False)
    def run(x, y):
        random = (lambda steps: tf.gather(table, steps, batch_dims=1)) if values else None
        updates = train_users(
            net, start, {"x": x, "y": y}, tf.constant(counts), settings=how, random=random
        )
        sums, broken = updates.clipped_sum(tf.constant(clip_norm), tf.constant(counts))
        unclipped = updates.unclipped(tf.constant(clip_norm), tf.constant(counts))
        return sums, broken, updates.squared_norms, unclipped

    sums, *others = run(x, y)
    return flat(sums), *(other.numpy() for other in others)


@pytest.mark.parametrize(
    ("build", "changes"),
    [
        (dense_model, {}),
        (dense_model, {"optimizer": "momentum"}),
        (dense_model, {"proximal": 0.5}),
        (dense_model, {"optimizer": "momentum", "proximal": 0.5, "epochs": 3}),
        (branches, {"optimizer": "momentum"}),
        (dropout, {}),
    ],
)
def test_a_block_trains_each_user_as_by_itself(build, changes):
    """Ragged users: whole batches, parts of one, one example, none."""
    model, how = build(), settings(**changes)
    x, y = examples_of(len(COUNTS))
    updates = one_by_one(model, how, x, y, COUNTS)
    assert min(np.linalg.norm(u) for u in updates[:4]) > 0.1
    clip_norm = float(np.median([np.linalg.norm(u) for u in updates[:4]]))  # some are clipped
    expected = sum(clip_by_global_norm(u, clip_norm=clip_norm) for u in updates)
    total, broken, squared, unclipped = in_a_block(model, how, x, y, COUNTS, clip_norm)
    np.testing.assert_allclose(total, expected, atol=1e-5)
    assert not broken.any()
    assert 0 < sum(unclipped[:4]) < 4 and unclipped[4]  # who has no examples is not clipped
    assert [u <= clip_norm for u in np.sqrt(squared)] == unclipped.tolist()
    norms = [np.linalg.norm(u) for u in updates]
    # A user without examples has what may have been flushed to zero.
    np.testing.assert_allclose(np.sqrt(squared), norms, rtol=1e-4, atol=1e-15)


def test_a_norm_is_never_below_that_of_the_update():
    """Inputs that nearly cancel: the Gram matrix alone would lose digits of the norm."""
    model, how = dense_model(), settings(learning_rate=1.0)
    x, y = examples_of(1)
    x = 1 + x / 1000
    update, _, squared, _ = in_a_block(model, how, x, y, [EXAMPLES], 1e9)  # nothing is clipped
    true = float(np.sum(update.astype(np.float64) ** 2))
    assert true * (1 - 1e-5) <= squared[0] < true * 1.01


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_broken_user_counts_as_zero_and_harms_nobody(value):
    model, how = dense_model(), settings()
    x, y = examples_of(3)
    expected = sum(
        clip_by_global_norm(u, clip_norm=0.5) for u in one_by_one(model, how, x, y, [12, 0, 12])
    )
    x[1, :] = value
    total, broken, _, unclipped = in_a_block(model, how, x, y, [12, 5, 12], 0.5)
    np.testing.assert_allclose(total, expected, atol=1e-5)
    assert broken.tolist() == [False, True, False] and not unclipped[1]
    _, broken, _, unclipped = in_a_block(model, how, x, y, [12, 0, 12], 0.5)
    assert not broken.any() and unclipped[1]  # a user without examples can not be broken


def mixes_the_batch():
    layers = [L.InputLayer([5, 6, 1]), L.Flatten(), L.Dense(20), BatchMean(), L.Dense(CLASSES)]
    return tf.keras.Sequential(layers)


class BatchMean(tf.keras.layers.Layer):
    def call(self, inputs):
        return inputs - tf.reduce_mean(inputs, axis=0, keepdims=True)


@pytest.mark.parametrize(
    ("build", "changes", "why"),
    [
        (dense_model, {"optimizer": "adam"}, "adam"),
        (dense_model, {"batch_size": 1}, "one example"),
        (mixes_the_batch, {}, "mixes examples"),
        (
            lambda: tf.keras.Sequential(
                [L.InputLayer([5, 6, 1]), L.Conv2D(2, 3), L.Flatten(), L.Dense(CLASSES)]
            ),
            {},
            "Conv2D",
        ),
        (
            lambda: tf.keras.Sequential(
                [L.InputLayer([5, 6, 1]), L.Flatten(), L.Dropout(0.5), L.Dense(CLASSES)]
            ),
            {},
            "on the inputs themselves",
        ),
        (
            lambda: tf.keras.Sequential(
                [L.InputLayer([5, 6, 1]), L.Lambda(lambda x: x[:, 0, 0]), L.Dense(CLASSES)]
            ),
            {},
            "large enough",
        ),
    ],
)
def test_other_models_and_optimizers_are_left_to_the_loop(build, changes, why):
    how = settings(**changes)
    with pytest.raises(NotDenseError, match=why):
        DenseNet(ClientComputation(build(), how), how, examples=EXAMPLES)


def test_blocks_are_even_and_fit_the_cache():
    how = settings()
    net = DenseNet(ClientComputation(dense_model(), how), how, examples=EXAMPLES)
    assert users_of_a_block(net, examples=EXAMPLES, users=20) == 20
    assert users_of_a_block(net, examples=EXAMPLES, users=33) == 17
    assert users_of_a_block(net, examples=1000, users=33) == 1
    assert users_of_a_block(net, examples=EXAMPLES, users=1) == 1
