"""Every layer of the table: forward, twenty plain steps and twenty private ones against Keras."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from export_bench import on_each_interpreter, plan_of
from keras_oracle import flat, median_norm, private_steps, set_flat, sgd_steps
from layer_models import ACTIVATIONS, CLASSES, FAST, LAYERS, L

from tf_dpfl.client_work.interface import interface_of
from tf_dpfl.export.client import build_client_tflite
from tf_dpfl.export.operators import operators_of
from tf_dpfl.export.random_examples import RandomExamples
from tf_dpfl.export.runners import interpreter_runner
from tf_dpfl.export.verify import verify_client_tflite
from tf_dpfl.protocol.errors import ExportError
from tf_dpfl.protocol.losses import LOSSES

BATCH, STEPS, RATE = 4, 20, 0.05


def check_twenty_steps(model: tf.keras.Model) -> None:
    """Twenty plain steps and twenty private ones of one file, each against Keras."""
    plan = plan_of(batch_size=BATCH, unit="example", delta=1e-4)
    content = build_client_tflite(model, plan)
    assert all(op.is_builtin for op in operators_of(content))
    devices = on_each_interpreter(content, model, plan)
    initial = flat(model.trainable_variables).astype(np.float32)
    examples = RandomExamples(model, plan.local_training)
    rng = np.random.default_rng(11)
    batches = [examples.batch(rng, BATCH) for _ in range(STEPS)]
    fixed = [v.numpy() for v in model.non_trainable_variables]

    inputs = examples.inputs(rng, 3)
    arrays = list(inputs.values())
    expected = model(arrays[0] if len(arrays) == 1 else arrays, training=False).numpy()
    plain = sgd_steps(model, batches, rate=RATE)

    set_flat(model, initial)
    clip_norm = median_norm(model, batches[0])
    real = [BATCH if step % 3 else step % 2 for step in range(STEPS)]
    weights = [(np.arange(BATCH) < count).astype(np.float32) for count in real]
    spread = 0.1 * clip_norm / np.sqrt(initial.size)
    noises = [(spread * rng.normal(size=initial.shape)).astype(np.float32) for _ in batches]
    scale = RATE / BATCH  # from the sum of the gradients to the step that the file noises
    private = private_steps(model, batches, weights, noises, rate=RATE, clip_norm=clip_norm)

    for device in devices:
        device.set_weights(initial)
        np.testing.assert_allclose(device.infer(inputs), expected, rtol=1e-4, atol=2e-6)
        for batch in batches:
            device.train(batch, np.ones(BATCH, np.float32), RATE)
        assert_equal_steps(device.get_weights(), plain, initial)
        device.set_weights(initial)
        for batch, weight, noise in zip(batches, weights, noises):
            device.train_dp(batch, weight, RATE, scale * clip_norm, np.float32(scale) * noise)
        assert_equal_steps(device.get_weights(), private, initial)
    for before, after in zip(fixed, model.non_trainable_variables):
        np.testing.assert_array_equal(before, after.numpy())


def assert_equal_steps(ours: Any, theirs: Any, initial: Any) -> None:
    assert np.linalg.norm(theirs - initial) > 1e-3
    assert np.linalg.norm(ours - theirs) <= 1e-5 * np.linalg.norm(theirs)


@pytest.mark.parametrize(
    "name", [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in LAYERS]
)
def test_twenty_exported_steps_plain_and_private_are_those_of_keras(name: str) -> None:
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


@pytest.mark.parametrize(
    "end", [L.Dense(3, "softmax"), L.TimeDistributed(L.Dense(3, "softmax"))], ids=["end", "steps"]
)
def test_a_sequence_of_classes_a_softmax_end_and_the_proximal_term_are_verified(end: Any) -> None:
    model = tf.keras.Sequential([L.InputLayer((5,), dtype="int32"), L.Embedding(6, 4), end])
    plan = plan_of(batch_size=BATCH, local_training={"proximal": 0.5})
    assert interface_of(model, plan.local_training).target.shape == (5,)
    verify_client_tflite(build_client_tflite(model, plan), model, plan)


def test_frozen_weights_are_not_sent_and_are_in_the_file() -> None:
    model = LAYERS["frozen"]()
    plan = plan_of(batch_size=BATCH)
    interface = interpreter_runner(build_client_tflite(model, plan), model, plan)
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
