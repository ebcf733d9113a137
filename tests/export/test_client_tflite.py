"""`client.tflite` computes what TensorFlow computes, from builtin ops alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from export_bench import IMAGE, MODELS, activation, batch, build, layers, plan_of

from models.validate import validate_model
from tf_dpfl.export.client import build_client_tflite
from tf_dpfl.export.operators import operators_of
from tf_dpfl.export.runners import interpreter_runner, tensorflow_runner
from tf_dpfl.export.verify import verify_client_tflite
from tf_dpfl.protocol.errors import ExportError, ModelError

ACTIVATIONS = (
    "relu relu6 elu selu tanh sigmoid softplus softmax swish hard_sigmoid exponential".split()
)


@pytest.mark.parametrize(
    ("name", "optimizer"),
    [("mlp", "sgd"), ("cnn", "sgd"), *((name, "momentum") for name in MODELS)],
)
def test_twenty_steps_give_tensorflows_weights(name: str, optimizer: str) -> None:
    model, plan = build(name), plan_of(optimizer=optimizer)
    content = build_client_tflite(model, plan)
    assert all(op.is_builtin for op in operators_of(content))

    device = interpreter_runner(content, model, plan)
    reference = tensorflow_runner(model, plan)
    initial = reference.get_weights()
    device.set_weights(initial)
    rng = np.random.default_rng(1)
    for step in range(20):
        x, y = batch(rng, model, 8)
        weight = (np.arange(8) < (8 if step % 4 else 5)).astype(np.float32)
        losses = [runner.train({"x": x, "y": y}, weight, 0.02) for runner in (device, reference)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    ours, theirs = device.get_weights(), reference.get_weights()
    assert np.linalg.norm(theirs - initial) > 1e-2
    assert np.linalg.norm(ours - theirs) <= 1e-5 * np.linalg.norm(theirs)


@pytest.mark.parametrize("name", ["linear", "separable"])
def test_a_verified_file_lists_ops_and_checks_and_leaves_the_weights(name: str) -> None:
    model, plan = build(name), plan_of(optimizer="momentum")
    before = model.get_weights()
    found = verify_client_tflite(build_client_tflite(model, plan), model, plan)
    assert found.operators["READ_VARIABLE"] > 0
    assert "clipping and noising" in found.checks
    for kept, now in zip(before, model.get_weights()):
        np.testing.assert_array_equal(kept, now)


@pytest.mark.parametrize("clipping", ["per_layer", "value"])
def test_a_file_that_clips_in_parts_is_verified_and_is_no_other_file(clipping: str) -> None:
    model, plan = build("mlp"), plan_of(clipping=clipping)
    content = build_client_tflite(model, plan)
    assert all(op.is_builtin for op in operators_of(content))
    found = verify_client_tflite(content, model, plan)
    assert "clipping and noising" in found.checks
    with pytest.raises(ExportError, match="clipping and noising"):
        verify_client_tflite(content, model, plan_of())
    with pytest.raises(ExportError, match="clipping and noising"):
        verify_client_tflite(build_client_tflite(model, plan_of()), model, plan)


def test_every_activation_is_verified() -> None:
    """Side by side, so that each has weights whose gradient goes through it alone."""
    x = tf.keras.Input((9,))
    branches = [layers.Dense(4, name, name=f"dense_{name}")(x) for name in ACTIVATIONS]
    model = tf.keras.Model(x, layers.Dense(3)(layers.Concatenate()(branches)))
    verify_client_tflite(build_client_tflite(model, plan_of()), model, plan_of())


def test_a_batch_of_one_and_two_classes() -> None:
    model = tf.keras.Sequential([layers.InputLayer((1,)), layers.Dense(2)])
    plan = plan_of(batch_size=1)
    verify_client_tflite(build_client_tflite(model, plan), model, plan)


DEVICE = """
import sys
import numpy as np
from tf_dpfl.protocol.clipping import clip_by_global_norm
from tf_dpfl.protocol.interpreter import load_interpreter

interpreter = load_interpreter(open(sys.argv[1], "rb").read())
run = {name: interpreter.get_signature_runner(name) for name in interpreter.get_signature_list()}
assert sorted(run) == ["get_weights", "infer", "privatize_update", "set_weights", "train"], run
size = run["get_weights"]()["weights"].size
initial = np.linspace(-0.1, 0.1, size, dtype=np.float32)
assert run["set_weights"](weights=initial)["size"] == size
x, y = np.ones((8, 28, 28, 1), np.float32), np.arange(8, dtype=np.int32)
loss = run["train"](x=x, y=y, weight=np.ones(8, np.float32), learning_rate=np.float32(0.1))["loss"]
assert np.isfinite(loss)
update = run["get_weights"]()["weights"] - initial
noise = np.full(size, 0.25, np.float32)
report = run["privatize_update"](initial=initial, clip_norm=np.float32(0.01), noise=noise)["update"]
expected = clip_by_global_norm(update, clip_norm=0.01) + noise
assert np.abs(report - expected).max() < 1e-6
assert run["infer"](x=x[:3])["logits"].shape == (3, 10)
assert not {"tensorflow", "keras", "tensorflow_federated"} & set(sys.modules)
print("trained without TensorFlow")
"""


def test_the_file_trains_in_a_process_without_tensorflow(tmp_path: Path) -> None:
    file = tmp_path / "client.tflite"
    file.write_bytes(build_client_tflite(build("cnn"), plan_of(optimizer="momentum")))
    done = subprocess.run(
        [sys.executable, "-c", DEVICE, str(file)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout == "trained without TensorFlow\n", done.stderr


def test_conversion_and_verification_are_silent(capfd: pytest.CaptureFixture[str]) -> None:
    model, plan = build("linear"), plan_of()
    capfd.readouterr()
    verify_client_tflite(build_client_tflite(model, plan), model, plan)
    assert capfd.readouterr() == ("", "")
    print("heard again")
    assert capfd.readouterr().out == "heard again\n"


def _conv3d() -> tf.keras.Model:
    return tf.keras.Sequential(
        [
            layers.InputLayer((4, 4, 4, 2)),
            layers.Conv3D(3, 2, name="volume"),
            layers.Flatten(),
            layers.Dense(3),
        ]
    )


@pytest.mark.parametrize(
    ("model", "layer", "op"),
    [
        (_conv3d, r"'volume' \(Conv3D\)", "Conv3D"),
        (lambda: activation(tf.math.erf), r"'mid' \(Dense\)", "Erf"),
        (lambda: activation(tf.math.digamma), r"'mid' \(Dense\)", "Digamma"),
    ],
    ids=["conv3d", "erf", "digamma"],
)
def test_an_op_without_rule_is_refused_with_its_layer(model, layer: str, op: str) -> None:
    with pytest.raises(ExportError, match=rf"layer {layer}: op ({op})"):
        build_client_tflite(model(), plan_of())


def test_a_case_a_rule_refuses_names_the_layer() -> None:
    class Turned(layers.Layer):
        def call(self, x: tf.Tensor) -> tf.Tensor:
            return tf.einsum("ab,bb->ab", x, tf.eye(6))

    model = tf.keras.Sequential(
        [layers.InputLayer((6,)), layers.Dense(6), Turned(name="turn"), layers.Dense(2)]
    )
    with pytest.raises(ExportError, match=r"layer 'turn' \(Turned\): op Einsum .*as matmul"):
        build_client_tflite(model, plan_of())


def test_an_op_in_front_of_all_weights_without_builtin_is_refused_with_its_layer() -> None:
    class ErrorFunction(layers.Layer):
        def call(self, x: tf.Tensor) -> tf.Tensor:
            return tf.math.erf(x)

    model = tf.keras.Sequential(
        [layers.InputLayer((6,)), ErrorFunction(name="front"), layers.Dense(2)]
    )
    with pytest.raises(ExportError, match=r"layer 'front' \(ErrorFunction\): op Erf"):
        build_client_tflite(model, plan_of())


def test_all_unsupported_layers_are_named_at_once() -> None:
    model = tf.keras.Sequential(
        [
            layers.InputLayer((6,)),
            layers.Dense(6, tf.math.erf, name="first"),
            layers.Dense(6, tf.math.digamma, name="second"),
            layers.Dense(2),
        ]
    )
    with pytest.raises(ExportError, match=r"(?s)first.*Erf.*second.*Digamma"):
        build_client_tflite(model, plan_of())


class Spectrum(layers.Layer):
    """A transform, and one back, that have no builtin."""

    def call(self, x: tf.Tensor) -> tf.Tensor:
        return tf.signal.irfft(tf.signal.rfft(x))


def test_layers_whose_ops_only_the_converter_refuses_are_named_at_once() -> None:
    parts = [Spectrum(name="first"), layers.Dense(8), Spectrum(name="second")]
    model = tf.keras.Sequential([layers.InputLayer((8,)), *parts, layers.Dense(2)])
    with pytest.raises(ExportError) as caught:
        build_client_tflite(model, plan_of())
    faults = caught.value.faults
    assert sorted(fault.partition(": op ")[0] for fault in faults) == [
        "layer 'first' (Spectrum)",
        "layer 'second' (Spectrum)",
    ]
    assert any("op IRFFT" in fault for fault in faults)
    assert all(
        fault.endswith("devices carry no Flex delegate; use another layer") for fault in faults
    )


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            lambda: tf.keras.Sequential([layers.InputLayer((None, 3)), layers.Dense(2)]),
            "fixed sizes",
        ),
        (
            lambda: tf.keras.Sequential([layers.InputLayer((4,)), layers.Dense(1)]),
            "binary_crossentropy",
        ),
        (
            lambda: tf.keras.Sequential([layers.InputLayer((4,), dtype="int64"), layers.Dense(2)]),
            "int64",
        ),
    ],
    ids=["open size", "one output", "long integers"],
)
def test_a_model_of_another_interface_is_refused(model, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        build_client_tflite(model(), plan_of())


def test_batch_normalisation_is_refused_by_name() -> None:
    model = tf.keras.Sequential(
        [
            layers.InputLayer(IMAGE),
            layers.Conv2D(4, 3),
            layers.BatchNormalization(name="bn"),
            layers.Flatten(),
            layers.Dense(2),
        ]
    )
    with pytest.raises(ModelError, match="bn"):
        validate_model(model)
    with pytest.raises(ExportError, match=r"layer 'bn' \(BatchNormalization\)"):
        build_client_tflite(model, plan_of())
