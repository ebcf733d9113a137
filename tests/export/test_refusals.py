"""What devices can not train is refused: every layer at once, by path, with what to use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import tensorflow as tf
from export_bench import plan_of

from tf_dpfl.client_work.losses import NAMED
from tf_dpfl.export.client import build_client_tflite
from tf_dpfl.export.layers import layer_of_op
from tf_dpfl.export.task import require_exportable
from tf_dpfl.protocol.errors import ExportError, ModelError

L = tf.keras.layers
VOLUME, IMAGE, SERIES = (4, 4, 4, 2), (6, 6, 4), (6, 4)


def stack(shape: tuple[int, ...], *parts: Any, dtype: str = "float32") -> tf.keras.Model:
    end = [L.Flatten(), L.Dense(3)]
    return tf.keras.Sequential([L.InputLayer(shape, dtype=dtype), *parts, *end], name="net")


def faults_of(model: tf.keras.Model) -> tuple[str, ...]:
    with pytest.raises(ExportError) as caught:
        build_client_tflite(model, plan_of())
    assert all("\n" not in fault for fault in caught.value.faults)
    return caught.value.faults


REFUSED: dict[str, tuple[Callable[[], tf.keras.Model], str]] = {
    "Conv3D": (lambda: stack(VOLUME, L.Conv3D(3, 2, name="bad")), "use Conv2D in a TimeDist"),
    "Conv3DTranspose": (
        lambda: stack(VOLUME, L.Conv3DTranspose(3, 2, name="bad")),
        "use Conv2DTranspose in a TimeDistributed",
    ),
    "MaxPooling3D": (
        lambda: stack(VOLUME, L.Dense(2), L.MaxPool3D(2, name="bad")),
        "use MaxPooling2D in a TimeDistributed, or GlobalMaxPooling3D",
    ),
    "AveragePooling3D": (
        lambda: stack(VOLUME, L.Dense(2), L.AveragePooling3D(2, name="bad")),
        "use AveragePooling2D in a TimeDistributed, or GlobalAveragePooling3D",
    ),
    "ConvLSTM1D": (lambda: stack((3, 5, 2), L.ConvLSTM1D(2, 2, name="bad")), "LSTM or GRU"),
    "LocallyConnected1D": (
        lambda: stack(SERIES, L.LocallyConnected1D(3, 2, implementation=2, name="bad")),
        "use implementation=1",
    ),
    "UpSampling2D": (
        lambda: stack(IMAGE, L.Dense(3), L.UpSampling2D(2, interpolation="bicubic", name="bad")),
        'use interpolation="nearest" or "bilinear"',
    ),
    "Conv2D": (
        lambda: stack(IMAGE, L.Conv2D(3, 2, data_format="channels_first", name="bad")),
        'use "channels_last", behind a Permute',
    ),
    "Conv1D": (
        lambda: stack(SERIES, L.Conv1D(3, 2, data_format="channels_first", name="bad")),
        'use "channels_last", behind a Permute',
    ),
    "MaxPooling2D": (
        lambda: stack(IMAGE, L.Dense(3), L.MaxPool2D(2, data_format="channels_first", name="bad")),
        'use "channels_last", behind a Permute',
    ),
    "Conv1DTranspose": (
        lambda: stack(SERIES, L.Conv1DTranspose(3, 3, dilation_rate=2, name="bad")),
        "use dilation_rate=1",
    ),
    "CategoryEncoding": (
        lambda: stack((1,), L.CategoryEncoding(4, "one_hot", name="bad"), dtype="int32"),
        "before the examples are stored",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_layer_is_refused_by_name_with_what_to_use_instead(kind: str) -> None:
    make, instead = REFUSED[kind]
    (fault,) = faults_of(make())
    assert fault.startswith(f"layer 'bad' ({kind}): ")
    assert instead in fault


class Grouped(L.Layer):
    """A convolution in groups that no rule covers."""

    def build(self, shape: Any) -> None:
        self.kernel = self.add_weight(name="kernel", shape=(2, 2, shape[-1] // 2, 4))

    def call(self, x: Any) -> Any:
        return tf.nn.conv2d(x, self.kernel, 1, "SAME")


class Chosen(L.Layer):
    """A condition in the graph."""

    def call(self, x: Any) -> Any:
        return tf.cond(tf.reduce_sum(x) > 0.0, lambda: x, lambda: -x)


def test_what_rules_refuse_is_named_at_once_by_paths() -> None:
    inner = tf.keras.Sequential([L.InputLayer(IMAGE), Grouped(name="conv")], name="inner")
    outer = tf.keras.Sequential([L.InputLayer(IMAGE), inner, Grouped(name="conv")], name="outer")
    faults = faults_of(stack(IMAGE, L.Conv2D(4, 1, name="conv"), outer, Chosen(name="if")))
    places = [fault.partition(": ")[0] for fault in faults]
    assert places == [
        "layer 'if' (Chosen)",
        "layer 'outer/conv' (Grouped)",
        "layer 'outer/inner/conv' (Grouped)",
    ]
    assert "choose with tf.where" in faults[0]
    assert all("use groups=1" in fault for fault in faults[1:])


class Edged(L.Layer):
    """A convolution that pads by numbers."""

    def build(self, shape: Any) -> None:
        self.kernel = self.add_weight(name="kernel", shape=(2, 2, shape[-1], 4))

    def call(self, x: Any) -> Any:
        return tf.nn.conv2d(x, self.kernel, 1, [[0, 0], [1, 0], [0, 1], [0, 0]])


def test_padding_by_numbers_is_refused_with_what_to_use_instead() -> None:
    (fault,) = faults_of(stack(IMAGE, Edged(name="bad")))
    assert fault.startswith("layer 'bad' (Edged): ")
    assert "use VALID behind tf.pad" in fault


def test_layers_that_draw_for_themselves_hide_no_other() -> None:
    cubic = L.UpSampling2D(2, interpolation="bicubic", name="cubic")
    model = stack(IMAGE, L.Dense(3), L.RandomFlip(name="flip"), cubic)
    with pytest.raises(ModelError) as caught:
        require_exportable(model, plan_of())
    places = [fault.partition(" (")[0] for fault in caught.value.faults]
    assert places == ["layer flip", "layer 'cubic'"]


def test_faults_of_every_kind_are_named_at_once() -> None:
    model = stack(
        VOLUME,
        L.Conv3D(3, 2, name="volume"),
        L.BatchNormalization(name="norm"),
        L.Dense(3, kernel_constraint="non_neg", name="positive"),
        L.Lambda(lambda x: 2 * x),
    )
    plan = plan_of(local_training={"loss": "test_losses_that_is_not_there:loss"})
    with pytest.raises(ModelError) as caught:
        require_exportable(model, plan)
    kinds = ("layer norm", "layer positive", "local_training.loss", "holds Python code", "'volume'")
    assert len(caught.value.faults) == len(kinds)
    for fault, kind in zip(caught.value.faults, kinds):
        assert kind in fault


def test_a_model_without_weights_yet_or_with_a_call_of_its_own_is_refused() -> None:
    with pytest.raises(ModelError, match="has no weights yet"):
        require_exportable(tf.keras.Sequential([L.Dense(3)]), plan_of())

    class Doubled(tf.keras.Model):
        def call(self, x: Any, training: Any = None) -> Any:
            return 2.0 * super().call(x)

    x = tf.keras.Input((4,))
    with pytest.raises(ModelError, match="has a call of its own"):
        require_exportable(Doubled(x, L.Dense(3)(x)), plan_of())


def test_ops_are_found_in_the_layer_whose_whole_path_they_carry() -> None:
    inner = tf.keras.Sequential([L.InputLayer((4,)), L.Dense(4, name="d")], name="inner")
    model = tf.keras.Sequential([L.InputLayer((4,)), L.Dense(4, name="d"), inner], name="net")
    assert layer_of_op(model, "net/d/MatMul") == "layer 'd' (Dense)"
    assert layer_of_op(model, "net/inner/d/MatMul;other") == "layer 'inner/d' (Dense)"
    assert layer_of_op(model, "net/inner_1/d_2/MatMul") == "layer 'inner/d' (Dense)"
    assert "no Keras layer" in layer_of_op(model, "gradients/add")


def test_every_named_loss_has_keras_own_in_the_verification() -> None:
    from tf_dpfl.export import tape

    assert set(tape._OF_KERAS) == set(NAMED)
