"""Every layer of the table: twenty exported steps against Keras, forward against Keras."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from export_bench import plan_of
from layer_models import ACTIVATIONS, CLASSES, FAST, LAYERS, L

from tf_dpfl.client_work.interface import interface_of
from tf_dpfl.client_work.preparing import prepare_model
from tf_dpfl.export.client import build_client_tflite
from tf_dpfl.export.operators import operators_of
from tf_dpfl.export.random_examples import RandomExamples
from tf_dpfl.export.runners import interpreter_runner, tensorflow_runner
from tf_dpfl.export.verify import verify_client_tflite
from tf_dpfl.protocol.errors import ExportError
from tf_dpfl.protocol.losses import LOSSES

BATCH, STEPS, RATE = 4, 20, 0.05


def flat(model: tf.keras.Model) -> np.ndarray:
    return np.concatenate([v.numpy().ravel() for v in model.trainable_variables])


def keras_steps(model: tf.keras.Model, batches: list[dict[str, Any]]) -> np.ndarray:
    """Plain Keras: its layers, its loss, a GradientTape, its optimizer."""
    loss = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    optimizer = tf.keras.optimizers.legacy.SGD(RATE)

    @tf.function
    def step(inputs: Any, y: Any) -> None:
        with tf.GradientTape() as tape:
            value = loss(y, model(inputs, training=True))
        gradients = tape.gradient(value, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables))

    for batch in batches:
        inputs = [tf.constant(a) for name, a in batch.items() if name not in ("y", "random")]
        step(inputs[0] if len(inputs) == 1 else inputs, tf.constant(batch["y"]))
    return flat(model)


def check_twenty_steps(model: tf.keras.Model) -> None:
    plan = plan_of(batch_size=BATCH)
    content = build_client_tflite(model, plan)
    assert all(op.is_builtin for op in operators_of(content))
    device, initial = interpreter_runner(content), flat(model)
    examples = RandomExamples(model, plan.local_training)
    rng = np.random.default_rng(11)
    batches = [examples.batch(rng, BATCH) for _ in range(STEPS)]

    inputs = examples.inputs(rng, 3)
    device.set_weights(initial)
    arrays = list(inputs.values())
    expected = model(arrays[0] if len(arrays) == 1 else arrays, training=False).numpy()
    np.testing.assert_allclose(device.infer(inputs), expected, rtol=1e-4, atol=2e-6)

    everywhere = np.ones(BATCH, np.float32)
    for batch in batches:
        device.train(batch, everywhere, RATE)
    ours = device.get_weights()
    fixed = [v.numpy() for v in model.non_trainable_variables]
    if prepare_model(model).random_values:  # Keras' own layers can not be fed
        reference = tensorflow_runner(model, plan)
        for batch in batches:
            reference.train(batch, everywhere, RATE)
        theirs = reference.get_weights()
    else:
        theirs = keras_steps(model, batches)
    assert np.linalg.norm(theirs - initial) > 1e-3
    assert np.linalg.norm(ours - theirs) <= 1e-5 * np.linalg.norm(theirs)
    for before, after in zip(fixed, model.non_trainable_variables):
        np.testing.assert_array_equal(before, after.numpy())


@pytest.mark.parametrize(
    "name", [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in LAYERS]
)
def test_twenty_exported_steps_are_those_of_keras(name: str) -> None:
    tf.keras.utils.set_random_seed(2)
    check_twenty_steps(LAYERS[name]())


def test_twenty_steps_through_every_activation() -> None:
    """Side by side, so that each has weights whose gradient goes through it alone."""
    tf.keras.utils.set_random_seed(3)
    x = tf.keras.Input((9,))
    branches = [L.Dense(4, activation)(x) for activation in ACTIVATIONS.values()]
    check_twenty_steps(tf.keras.Model(x, L.Dense(CLASSES)(L.Concatenate()(branches))))


def test_the_names_of_fast_ones_exist() -> None:
    assert set(FAST) <= set(LAYERS)


@pytest.mark.parametrize("loss", [loss for loss in LOSSES if not loss.startswith("sparse")])
def test_every_loss_is_verified(loss: str) -> None:
    model = tf.keras.Sequential([L.InputLayer((5,)), L.Dense(4, "tanh"), L.Dense(2)])
    plan = plan_of(batch_size=BATCH, local_training={"loss": loss, "optimizer": "adam"})
    verify_client_tflite(build_client_tflite(model, plan), model, plan)


def test_a_sequence_of_classes_a_softmax_end_and_the_proximal_term_are_verified() -> None:
    model = tf.keras.Sequential(
        [L.InputLayer((5,), dtype="int32"), L.Embedding(6, 4), L.Dense(3, "softmax")]
    )
    plan = plan_of(batch_size=BATCH, local_training={"proximal": 0.5})
    assert interface_of(model, plan.local_training).target.shape == (5,)
    verify_client_tflite(build_client_tflite(model, plan), model, plan)


def test_frozen_weights_are_not_sent_and_are_in_the_file() -> None:
    model = LAYERS["frozen"]()
    interface = interpreter_runner(build_client_tflite(model, plan_of(batch_size=BATCH)))
    trainable = sum(int(np.prod(v.shape)) for v in model.trainable_variables)
    assert interface.get_weights().shape == (trainable,)
    assert trainable < model.count_params()


def test_a_wrong_replacement_of_a_layer_stops_the_export(monkeypatch: pytest.MonkeyPatch) -> None:
    from tf_dpfl.client_work.preparing import activations

    monkeypatch.setitem(
        activations._PORTABLE, tf.keras.activations.softsign, lambda x: x / (1.1 + tf.abs(x))
    )
    model = tf.keras.Sequential([L.InputLayer((5,)), L.Dense(4, "softsign"), L.Dense(2)])
    content = build_client_tflite(model, plan_of(batch_size=BATCH))
    with pytest.raises(ExportError, match="not what TensorFlow computes"):
        verify_client_tflite(content, model, plan_of(batch_size=BATCH))


def test_adam_is_verified_where_a_gradient_is_zero_but_for_rounding() -> None:
    """The key's bias of an attention: Adam would turn its rounding into whole steps."""
    model, plan = LAYERS["multi-head attention"](), plan_of(batch_size=BATCH, optimizer="adam")
    verify_client_tflite(build_client_tflite(model, plan), model, plan)
