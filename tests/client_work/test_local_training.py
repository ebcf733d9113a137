"""Local training held to a readable loop with Keras' own optimizer."""

import numpy as np
import pytest
import tensorflow as tf

from tf_dpfl.client_work.computation import ClientComputation
from tf_dpfl.client_work.local_training import train_locally
from tf_dpfl.protocol.plan import LocalTraining

N, SHAPE, CLASSES = 12, (6, 6, 1), 3


def small_cnn():
    layers = tf.keras.layers
    return tf.keras.Sequential(
        [
            layers.InputLayer(SHAPE),
            layers.Conv2D(4, 3, activation="tanh"),
            layers.MaxPool2D(2),
            layers.Flatten(),
            layers.Dense(CLASSES),
        ]
    )


def examples(seed=0):
    random = np.random.default_rng(seed)
    x = random.normal(size=(N, *SHAPE)).astype(np.float32)
    return x, random.integers(0, CLASSES, N).astype(np.int32)


def trained(model, settings, x, y, count):
    computation = ClientComputation(model, settings)
    start = np.concatenate([v.numpy().ravel() for v in model.trainable_variables])

    @tf.function
    def run(weights, x, y, count):
        computation.set_weights(weights)
        train_locally(computation, {"x": x, "y": y}, count, settings=settings)
        return computation.get_weights()

    return run(start, x, y, tf.constant(count)).numpy()


def keras_oracle(model, settings, x, y, count):
    clone = tf.keras.models.clone_model(model)
    clone.set_weights(model.get_weights())
    momentum = settings.momentum if settings.optimizer == "momentum" else 0.0
    optimizer = tf.keras.optimizers.legacy.SGD(settings.learning_rate, momentum=momentum)
    loss = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    for _ in range(settings.epochs):
        for begin in range(0, count, settings.batch_size):
            end = min(begin + settings.batch_size, count)
            with tf.GradientTape() as tape:
                value = loss(y[begin:end], clone(x[begin:end], training=True))
            variables = clone.trainable_variables
            optimizer.apply_gradients(zip(tape.gradient(value, variables), variables))
    return np.concatenate([v.numpy().ravel() for v in clone.trainable_variables])


@pytest.mark.parametrize("optimizer", ["sgd", "momentum"])
@pytest.mark.parametrize("count", [0, 1, 4, 7, 12])
def test_local_training_is_that_of_keras(optimizer, count):
    settings = LocalTraining(epochs=3, batch_size=4, learning_rate=0.2, optimizer=optimizer)
    model, (x, y) = small_cnn(), examples()
    expected = keras_oracle(model, settings, x, y, count)
    np.testing.assert_allclose(trained(model, settings, x, y, count), expected, atol=2e-6)


def test_padding_has_no_influence():
    settings = LocalTraining(epochs=2, batch_size=4, learning_rate=0.2)
    model, (x, y) = small_cnn(), examples()
    start = model.get_weights()
    expected = trained(model, settings, x, y, 5)
    x[5:], y[5:] = 99.0, 0
    model.set_weights(start)
    np.testing.assert_array_equal(trained(model, settings, x, y, 5), expected)


def test_every_user_starts_with_a_fresh_velocity():
    settings = LocalTraining(epochs=1, batch_size=4, learning_rate=0.2, optimizer="momentum")
    model, (x, y) = small_cnn(), examples()
    start = np.concatenate([v.numpy().ravel() for v in model.trainable_variables])
    computation = ClientComputation(model, settings)

    @tf.function
    def run(x, y):
        computation.set_weights(start)
        train_locally(computation, {"x": x, "y": y}, tf.constant(N), settings=settings)
        return computation.get_weights()

    np.testing.assert_array_equal(run(x, y).numpy(), run(x, y).numpy())
