"""Verification notices when a mechanism of the file is wrong or missing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from export_bench import activation, build, plan_of

from tf_dpfl.client_work import computation, losses
from tf_dpfl.client_work.optimizers import LocalOptimizer
from tf_dpfl.export import client, verify
from tf_dpfl.export.client import build_client_tflite
from tf_dpfl.export.gradients import op_gradients
from tf_dpfl.export.quiet import quiet
from tf_dpfl.export.runners import Runner, interpreter_runner
from tf_dpfl.export.tape import first_step
from tf_dpfl.export.verify import verify_client_tflite
from tf_dpfl.protocol.errors import ExportError


def _relu_off_by_a_permille(op: Any, grad: Any) -> Any:
    return 1.001 * grad * tf.cast(op.outputs[0] > 0.0, tf.float32)


def _relu_without_kink(op: Any, grad: Any) -> Any:
    return grad


def _bias_of_the_first_example(op: Any, grad: Any) -> Any:
    return grad, tf.reduce_sum(grad[:1], axis=list(range(grad.shape.rank - 1)))


def _dead(op: Any, grad: Any) -> Any:
    return grad * 0.0, grad * 0.0


WRONG = {
    "DpflTestReluPermille": ("Relu", _relu_off_by_a_permille, "pooling", "conv2d"),
    "DpflTestReluNoKink": ("Relu", _relu_without_kink, "strides", "conv2d"),
    "DpflTestBias": ("BiasAdd", _bias_of_the_first_example, "linear", "logits"),
    "DpflTestAdd": ("AddV2", _dead, "functional", "conv2d"),
}
for _name, (_, _rule, _, _) in WRONG.items():
    tf.RegisterGradient(_name)(_rule)


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_gradient_rule_is_caught_and_its_layers_named(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    op_type, _, model_name, layer = WRONG[name]
    monkeypatch.setattr(client, "op_gradients", lambda: {**op_gradients(), op_type: name})
    model, plan = build(model_name), plan_of()
    content = build_client_tflite(model, plan)
    with pytest.raises(ExportError, match=rf"layer '{layer}\w*' .*off by \S+, allowed is") as error:
        verify_client_tflite(content, model, plan)
    assert "step" in str(error.value)


def test_a_wrong_rule_behind_a_layer_of_zeros_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "DpflTestReluPermille"
    monkeypatch.setattr(client, "op_gradients", lambda: {**op_gradients(), "Relu": name})
    model, plan = activation("relu"), plan_of()
    last = model.layers[-1]
    last.set_weights([np.zeros_like(w) for w in last.get_weights()])
    content = build_client_tflite(model, plan)
    with pytest.raises(ExportError, match="'mid'"):
        verify_client_tflite(content, model, plan)


def _unclipped(update: Any, *, clip_norm: Any, noise: Any, **how: Any) -> Any:
    return update + 0.0 * clip_norm + noise


def _noiseless(update: Any, *, clip_norm: Any, noise: Any, **how: Any) -> Any:
    return computation_privatize(update, clip_norm=clip_norm, noise=0.0 * noise, **how)


def _nan_passes(update: Any, *, clip_norm: Any, noise: Any, **how: Any) -> Any:
    norm = tf.sqrt(tf.reduce_sum(update * update))
    return update * (clip_norm / tf.maximum(norm, clip_norm)) + noise


computation_privatize = computation.privatize


@pytest.mark.parametrize("broken", [_unclipped, _noiseless, _nan_passes])
def test_a_missing_clip_noise_or_nan_guard_is_caught(
    broken: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Taken out of the shared computation: TensorFlow and TFLite agree on it."""
    monkeypatch.setattr(computation, "privatize", broken)
    model, plan = build("linear"), plan_of()
    content = build_client_tflite(model, plan)
    with pytest.raises(ExportError, match="clipping and noising: .*protocol.clipping"):
        verify_client_tflite(content, model, plan)


@pytest.mark.parametrize(
    ("loss", "wrong"),
    [
        ("mean_squared_error", lambda y, p: 0.999 * losses.squared_error(y, p)),
        ("huber", lambda y, p: losses.squared_error(y, p)),
        (
            "sparse_categorical_crossentropy",
            lambda y, p: losses.sparse_softmax_cross_entropy(y, 1.01 * p),
        ),
        # With the slope of a relu at logits of exactly zero, where a last layer may start.
        (
            "binary_crossentropy",
            lambda y, p: tf.reduce_mean(
                tf.nn.relu(p) - p * y + tf.math.log(1.0 + tf.exp(-tf.abs(p))), axis=-1
            ),
        ),
    ],
    ids=["scaled", "another", "tempered", "kink"],
)
def test_a_wrong_loss_is_caught_by_keras_own(
    loss: str, wrong: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wrong in the shared computation: TensorFlow and TFLite agree on it."""
    model = tf.keras.Sequential(
        [
            tf.keras.layers.InputLayer((5,)),
            tf.keras.layers.Dense(4, "tanh", name="first"),
            tf.keras.layers.Dense(2, kernel_initializer="zeros"),
        ]
    )
    plan = plan_of(local_training={"loss": loss, "optimizer": "momentum"})
    verify_client_tflite(build_client_tflite(model, plan), model, plan)
    monkeypatch.setattr(losses, "NAMED", {**losses.NAMED, loss: wrong})
    content = build_client_tflite(model, plan)
    with pytest.raises(ExportError, match="against a GradientTape: layer"):
        verify_client_tflite(content, model, plan)


def test_adams_first_step_is_that_of_keras() -> None:
    gradient = np.array([0.3, -2.0, 1e-6, 0.0], np.float32)
    variable = tf.Variable(np.zeros(4, np.float32))
    settings = plan_of(optimizer="adam").local_training
    adam = tf.keras.optimizers.legacy.Adam(
        0.5, settings.beta_1, settings.beta_2, epsilon=settings.epsilon
    )
    adam.apply_gradients([(tf.constant(gradient), variable)])
    step = first_step(gradient, settings, rate=0.5)
    np.testing.assert_allclose(-variable.numpy(), step, rtol=1e-5)


def test_a_file_for_another_optimizer_is_caught() -> None:
    model = build("linear")
    content = build_client_tflite(model, plan_of(optimizer="sgd"))
    with pytest.raises(ExportError, match=r"6 steps"):
        verify_client_tflite(content, model, plan_of(optimizer="momentum"))


def test_an_optimizer_that_is_not_reset_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    model, plan = build("linear"), plan_of(optimizer="momentum")
    with monkeypatch.context() as patch:
        patch.setattr(LocalOptimizer, "reset", lambda self: None)
        content = build_client_tflite(model, plan)
    with pytest.raises(ExportError, match="step"):
        verify_client_tflite(content, model, plan)


@pytest.mark.parametrize("optimizer", ["momentum", "adam"])
def test_a_kept_state_that_is_lost_or_half_kept_is_caught(
    optimizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, plan = (
        build("linear"),
        plan_of(local_training={"optimizer": optimizer, "optimizer_state": "keep"}),
    )
    checks = verify_client_tflite(build_client_tflite(model, plan), model, plan).checks
    assert "the optimizer's state kept over rounds" in checks
    whole = LocalOptimizer.set_state
    with monkeypatch.context() as patch:
        patch.setattr(LocalOptimizer, "set_state", lambda self, state: None)
        lost = build_client_tflite(model, plan)
        patch.setattr(LocalOptimizer, "set_state", lambda self, state: whole(self, 0.99 * state))
        changed = build_client_tflite(model, plan)
    for content in (lost, changed):
        with pytest.raises(ExportError, match="state kept over rounds"):
            verify_client_tflite(content, model, plan)


def test_a_file_of_another_model_is_caught() -> None:
    plan = plan_of()
    content = build_client_tflite(activation("relu"), plan)
    with pytest.raises(ExportError, match="logits|step"):
        verify_client_tflite(content, activation("tanh"), plan)


def test_a_file_without_the_signatures_is_refused() -> None:
    model = build("linear")
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    with quiet():
        content = converter.convert()
    with pytest.raises(ExportError, match="signatures"):
        verify_client_tflite(content, model, plan_of())


def test_a_flex_op_is_refused_with_its_layer() -> None:
    model = activation(tf.math.erf)
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    converter.target_spec.supported_ops = [
        tf.lite.OpsSet.TFLITE_BUILTINS,
        tf.lite.OpsSet.SELECT_TF_OPS,
    ]
    with quiet():
        content = converter.convert()
    with pytest.raises(ExportError, match=r"layer 'mid' \(Dense\): op FlexErf"):
        verify_client_tflite(content, model, plan_of())


def test_a_file_the_interpreter_can_not_run_is_one_error() -> None:
    """Here: a train signature of another batch size."""
    model = build("linear")
    content = build_client_tflite(model, plan_of(batch_size=4))
    with pytest.raises(ExportError, match="signature train fails in the interpreter"):
        verify_client_tflite(content, model, plan_of(batch_size=8))


def _behind_a_frozen_layer(activation: str = "relu") -> tf.keras.Model:
    """XNNPACK's relu makes 0 of NaN: where weights train, a broken example is none any more."""
    front = tf.keras.layers.Conv2D(4, 3, activation=activation, trainable=False)
    layers = [tf.keras.layers.InputLayer((6, 5, 2)), front, tf.keras.layers.Flatten()]
    return tf.keras.Sequential([*layers, tf.keras.layers.Dense(3)])


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam"])
def test_a_frozen_front_that_makes_numbers_of_nan_is_no_fault(
    optimizer: str, each_interpreter: str
) -> None:
    tf.keras.utils.set_random_seed(1)
    model = _behind_a_frozen_layer()
    plan = plan_of(batch_size=4, optimizer=optimizer, unit="example", delta=1e-4)
    checks = verify_client_tflite(build_client_tflite(model, plan), model, plan).checks
    assert "per-example clipping with a broken example" in checks


@pytest.mark.parametrize(
    ("optimizer", "part", "message", "activation"),
    [
        ("sgd", 2.0, "a broken example adds", "relu"),
        ("momentum", 2.0, "a broken example adds", "relu"),
        ("sgd", -0.5, "off by", "relu"),
        ("sgd", np.nan, "a broken example adds", "relu"),
        ("adam", np.nan, "a broken example adds", "relu"),
        ("adam", 2.0, "a broken example adds", "relu"),
        ("adam", 2.0, "a broken example adds", "linear"),
        ("adam", -0.5, "off by", "relu"),
    ],
)
def test_a_broken_example_that_adds_too_much_or_touches_others_is_caught(
    optimizer: str, part: float, message: str, activation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`part` of a sensitivity more for a broken example; negative: only beside others.

    With Adam, `part` of a quarter of the rate: about what three sensitivities move a weight by.
    """

    def more(content: bytes, model: Any, plan: Any) -> Runner:
        device = interpreter_runner(content, model, plan)

        def train_dp(batch: Any, weight: Any, rate: float, sensitivity: float, noise: Any) -> None:
            device.train_dp(batch, weight, rate, sensitivity, noise)
            counts = np.isnan(batch["x"]).any(axis=(1, 2, 3)) & (weight > 0)
            if counts.any() and (part > 0 or np.isnan(part) or weight.sum() > 1):
                weights = device.get_weights()
                weights[-1] += part * (0.25 if optimizer == "adam" else sensitivity)
                device.set_weights(weights)

        return replace(device, train_dp=train_dp)

    tf.keras.utils.set_random_seed(1)
    monkeypatch.setattr(verify, "interpreter_runner", more)
    model = _behind_a_frozen_layer(activation)
    plan = plan_of(batch_size=4, optimizer=optimizer, unit="example", delta=1e-4)
    content = build_client_tflite(model, plan)
    with pytest.raises(ExportError, match=f"with a broken example: .*{message}"):
        verify_client_tflite(content, model, plan)
