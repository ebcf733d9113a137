"""`DPModel` against tensorflow-privacy, a JacobianTape of its own, and dp_accounting."""

import itertools
import math

import dp_accounting
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_privacy
from dp_accounting.pld import PLDAccountant

from tf_dpfl import DPModel
from tf_dpfl.central.sampling import PoissonSampler
from tf_dpfl.protocol.errors import BudgetError, ModelError
from tf_dpfl.protocol.noise import gaussian_noise

EXAMPLES, CLASSES = 40, 3


def examples(count=EXAMPLES):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(count, 6, 6, 1)).astype(np.float32)
    return x, (x.sum(axis=(1, 2, 3)) > 0).astype(np.int64) + (x[:, 0, 0, 0] > 1)


def cnn(last=None):
    tf.keras.utils.set_random_seed(1)
    layers = tf.keras.layers
    return tf.keras.Sequential(
        [
            tf.keras.Input((6, 6, 1)),
            layers.Conv2D(4, 3, activation="tanh"),
            layers.Flatten(),
            layers.Dense(CLASSES, last),
        ]
    )


def compiled(model=None, *, optimizer=None, **settings):
    settings = {"clip_norm": 0.5, "delta": 1e-3, **settings}
    private = DPModel(model or cnn(), **settings)
    loss = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    private.compile(optimizer=optimizer or tf.keras.optimizers.SGD(1.0), loss=loss)
    return private


def keys():
    """Keys that can be foretold: 1, 2, 3, ... as 32 bytes."""
    numbers = itertools.count(1)
    return lambda count: next(numbers).to_bytes(count, "little")


def clipped_sum(model, x, y, clip_norm):
    """Per-example gradients by Keras' loss and a tape, clipped and added up in float64."""
    loss = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="none")
    with tf.GradientTape() as tape:
        losses = loss(y, model(x, training=True))
    jacobians = tape.jacobian(losses, model.trainable_variables)
    flat = np.concatenate([j.numpy().reshape(len(x), -1) for j in jacobians], axis=1, dtype=float)
    factors = np.minimum(1.0, clip_norm / np.maximum(np.linalg.norm(flat, axis=1), 1e-12))
    return (flat * factors[:, None]).sum(axis=0)


def flat_weights(model):
    return np.concatenate([w.ravel() for w in model.get_weights()]).astype(float)


def set_flat(model, flat):
    parts = np.split(flat, np.cumsum([w.size for w in model.get_weights()])[:-1])
    model.set_weights([p.reshape(w.shape) for p, w in zip(parts, model.get_weights())])


@pytest.mark.parametrize("piece", [3, 64])
def test_steps_are_those_of_a_jacobian_on_the_same_coins_and_noise(piece):
    x, y = examples()
    model, reference = cnn(), cnn()
    private = compiled(model, noise_multiplier=0.7, random_bytes=keys())
    private.fit(x, y, batch_size=10, steps_per_epoch=4, piece=piece, verbose=0)
    entropy, weights = keys(), flat_weights(reference)
    sampler = PoissonSampler(EXAMPLES, expected=10, random_bytes=entropy)
    sizes = []
    for _ in range(4):
        rows = sampler.draw()
        sizes.append(len(rows))
        noise = gaussian_noise(weights.size, stddev=0.35, random_bytes=entropy)
        set_flat(reference, weights)
        weights = weights - (clipped_sum(reference, x[rows], y[rows], 0.5) + noise) / 10
    assert len(set(sizes)) > 1  # the divisor is the expected size, not the drawn one
    np.testing.assert_allclose(flat_weights(model), weights, atol=2e-5)


def test_steps_are_those_of_tensorflow_privacys_optimizer():
    """Everybody in every batch and no noise: then both are deterministic."""
    x, y = examples()
    ours, theirs = cnn(), cnn()
    compiled(ours, noise_multiplier=0.0).fit(
        x, y, batch_size=EXAMPLES, epochs=5, steps_per_epoch=1, verbose=0
    )
    theirs.compile(
        optimizer=tensorflow_privacy.VectorizedDPKerasSGDOptimizer(
            l2_norm_clip=0.5, noise_multiplier=0.0, num_microbatches=EXAMPLES, learning_rate=1.0
        ),
        loss=tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="none"),
    )
    start = flat_weights(theirs)
    theirs.fit(x, y, batch_size=EXAMPLES, epochs=5, shuffle=False, verbose=0)
    moved = np.abs(flat_weights(theirs) - start).max()
    np.testing.assert_allclose(flat_weights(ours), flat_weights(theirs), atol=1e-4 * moved)


def test_noise_has_the_deviation_that_is_accounted():
    x, y = examples()
    model = cnn()
    start = flat_weights(model)
    private = compiled(model, clip_norm=1e-3, noise_multiplier=1000.0)
    private.fit(x, y, batch_size=20, steps_per_epoch=30, verbose=0)
    moved = flat_weights(model) - start  # thirty times noise of 1 / 20, and next to nothing else
    deviation = math.sqrt(30) / 20
    assert moved.std() == pytest.approx(deviation, rel=6 / math.sqrt(2 * moved.size))


@pytest.mark.parametrize(("noise", "batch", "steps"), [(1.0, 10, 30), (0.8, 40, 5), (3.0, 1, 200)])
def test_epsilon_is_that_of_dp_accounting(noise, batch, steps):
    x, y = examples()
    private = compiled(noise_multiplier=noise)
    private.fit(x, y, batch_size=batch, steps_per_epoch=steps, verbose=0)
    accountant = PLDAccountant(dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE)
    event = dp_accounting.PoissonSampledDpEvent(
        batch / EXAMPLES, dp_accounting.GaussianDpEvent(noise)
    )
    accountant.compose(event, steps)
    statement = private.privacy()
    assert statement.epsilon == pytest.approx(accountant.get_epsilon(1e-3), rel=0.01)
    assert sum(part.rounds for part in statement.spending) == steps
    assert f"{steps} steps of DP-SGD" in statement.to_text()


def test_a_target_is_met_and_is_of_one_fit():
    x, y = examples()
    private = compiled(target_epsilon=2.0)
    assert private.privacy().epsilon == 0.0
    private.fit(x, y, batch_size=10, epochs=3, verbose=0)
    assert 0.99 * 2.0 <= private.privacy().epsilon <= 2.0
    assert private.privacy().spending[0].rounds == 3 * 4
    with pytest.raises(BudgetError, match=r"target_epsilon=2 was spent by an earlier fit"):
        private.fit(x, y, batch_size=10, verbose=0)


def test_a_second_fit_adds_to_the_first():
    x, y = examples()
    private = compiled(noise_multiplier=1.0)
    private.fit(x, y, batch_size=10, verbose=0)
    once = private.privacy().epsilon
    private.fit(x, y, batch_size=20, verbose=0)
    assert private.privacy().epsilon > once
    assert [part.rounds for part in private.privacy().spending] == [4, 2]


def test_an_interrupted_fit_is_charged_for_the_steps_it_made():
    class Stop(tf.keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            assert not logs  # nothing about the examples of a step
            if batch == 2:
                raise KeyboardInterrupt

    x, y = examples()
    private = compiled(noise_multiplier=1.0)
    with pytest.raises(KeyboardInterrupt):
        private.fit(x, y, batch_size=10, epochs=5, callbacks=[Stop()], verbose=0)
    assert sum(part.rounds for part in private.privacy().spending) == 3


def test_a_step_whose_noise_cannot_be_drawn_is_charged_and_changes_nothing():
    """Charged first: nothing can be released that was not."""
    x, y = examples()
    entropy = keys()
    left = iter(range(5))  # keys: coins, noise, coins, noise, coins - and no more

    def running_out(count):
        if next(left, None) is None:
            raise OSError("no entropy")
        return entropy(count)

    model = cnn()
    private = compiled(model, noise_multiplier=1.0, random_bytes=running_out)
    with pytest.raises(tf.errors.OpError, match="no entropy"):
        private.fit(x, y, batch_size=10, steps_per_epoch=9, verbose=0)
    assert sum(part.rounds for part in private.privacy().spending) == 3


def test_history_has_validation_figures_and_none_of_training():
    x, y = examples()
    private = DPModel(cnn("softmax"), clip_norm=1.0, delta=1e-3, noise_multiplier=1.0)
    private.compile("adam", loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    history = private.fit(x, y, batch_size=10, epochs=2, validation_data=(x, y), verbose=0)
    assert set(history.history) == {"val_loss", "val_accuracy"}
    assert len(history.history["val_loss"]) == 2


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_broken_example_counts_as_zero_and_changes_nothing_for_the_others(value):
    x, y = examples()
    x[0, 2, 2, 0] = value
    model, start = cnn(), flat_weights(cnn())
    compiled(model, noise_multiplier=0.0).fit(
        x, y, batch_size=EXAMPLES, steps_per_epoch=1, verbose=0
    )
    expected = -clipped_sum(cnn(), x[1:], y[1:], 0.5) / EXAMPLES
    np.testing.assert_allclose(flat_weights(model) - start, expected, atol=1e-6)


def test_several_inputs_by_name_and_in_order_train_alike():
    def model():
        tf.keras.utils.set_random_seed(2)
        a, b = tf.keras.Input(4, name="a"), tf.keras.Input(3, name="b")
        joined = tf.keras.layers.Concatenate()([a, b])
        return tf.keras.Model([a, b], tf.keras.layers.Dense(1)(joined))

    rng = np.random.default_rng(3)
    a, b, y = (rng.normal(size=(30, n)).astype(np.float32) for n in (4, 3, 1))
    trained = []
    for x in ([a, b], {"b": b, "a": a}):
        private = DPModel(
            model(), clip_norm=1.0, delta=1e-3, noise_multiplier=1.0, random_bytes=keys()
        )
        private.compile("sgd", loss="mse")
        private.fit(x, y, batch_size=8, epochs=2, verbose=0)
        trained.append(flat_weights(private))
    np.testing.assert_array_equal(*trained)
    assert np.abs(trained[0] - flat_weights(model())).max() > 1e-4


def test_dropout_trains_and_the_wrapped_model_holds_the_weights():
    x, y = examples()
    layers = tf.keras.layers
    model = tf.keras.Sequential(
        [tf.keras.Input((6, 6, 1)), layers.Flatten(), layers.Dropout(0.5), layers.Dense(3)]
    )
    private = compiled(model, noise_multiplier=1.0)
    private.fit(x, y, batch_size=10, verbose=0)
    np.testing.assert_array_equal(flat_weights(model), flat_weights(private))
    np.testing.assert_allclose(model.predict(x, verbose=0), private.predict(x, verbose=0))


def test_layers_that_mix_examples_are_refused_by_name():
    model = tf.keras.Sequential(
        [
            tf.keras.Input(4),
            tf.keras.layers.BatchNormalization(name="mixer"),
            tf.keras.layers.Dense(2),
        ]
    )
    with pytest.raises(ModelError, match="mixer.*GroupNormalization"):
        DPModel(model, clip_norm=1.0, delta=1e-3, noise_multiplier=1.0)


CROSS = tf.keras.losses.SparseCategoricalCrossentropy


@pytest.mark.parametrize(
    ("last", "loss", "says"),
    [
        (None, "sparse_categorical_crossentropy", r"ends in logits .*\(from_logits=True\)"),
        ("softmax", CROSS(from_logits=True), r"ends in probabilities .*\(from_logits=False\)"),
        ("softmax", "hinge", "hinge.*must be one of sparse_categorical_crossentropy"),
        (None, CROSS(from_logits=True, ignore_class=2), "ignore_class must be left"),
        (None, CROSS(from_logits=True, reduction="sum"), "reduction must be left"),
        (None, None, "loss=None is not known"),
    ],
)
def test_losses_that_do_not_fit_are_refused(last, loss, says):
    private = DPModel(cnn(last), clip_norm=1.0, delta=1e-3, noise_multiplier=1.0)
    with pytest.raises(ModelError, match=says):
        private.compile("sgd", loss=loss)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"noise_multiplier": 1.0, "target_epsilon": 1.0}, "exactly one of the two"),
        ({}, "exactly one of the two"),
        ({"noise_multiplier": math.nan}, "noise_multiplier"),
        ({"noise_multiplier": 1.0, "clip_norm": 0.0}, "clip_norm"),
        ({"noise_multiplier": 1.0, "delta": 1.5}, "delta=1.5"),
    ],
)
def test_settings_out_of_range_are_refused(settings, says):
    with pytest.raises(ValueError, match=says):
        DPModel(cnn(), **{"clip_norm": 1.0, "delta": 1e-3, **settings})


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"x": np.zeros((40, 5, 6, 1))}, r"x is float64 \(40, 5, 6, 1\), it must be float32"),
        ({"y": np.zeros(39, int)}, "different numbers of examples"),
        ({"x": np.array([["a"]])}, "x is <U1"),
        ({"batch_size": 41}, "batch_size=41 must be from 1 to"),
        ({"sample_weight": np.ones(40)}, "sample_weight has no meaning here"),
        ({"validation_split": 0.2}, "pass validation_data"),
    ],
)
def test_what_does_not_fit_is_refused_and_not_charged(change, says):
    x, y = examples()
    private = compiled(noise_multiplier=1.0)
    with pytest.raises(ValueError, match=says):
        private.fit(**{"x": x, "y": y, "batch_size": 10, "verbose": 0, **change})
    assert private.privacy().spending == ()


def test_a_delta_that_would_allow_publishing_an_example_is_refused():
    x, y = examples()
    with pytest.raises(ValueError, match=r"delta=0.05 must be below 1/n=0.025"):
        compiled(noise_multiplier=1.0, delta=0.05).fit(x, y, batch_size=10, verbose=0)


def test_fit_before_compile_is_refused():
    x, y = examples()
    with pytest.raises(ValueError, match="compile the model first"):
        DPModel(cnn(), clip_norm=1.0, delta=1e-3, noise_multiplier=1.0).fit(x, y)
