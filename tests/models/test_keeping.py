"""Models that no file could hold are refused before anything is trained."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from models.keeping import load_keras, require_keepable
from tf_dpfl.protocol.errors import ModelError, StateError

L = tf.keras.layers


class Subclassed(tf.keras.Model):
    def __init__(self):
        super().__init__(name="net")
        self.dense = L.Dense(2)

    def call(self, inputs):
        return self.dense(inputs)


def test_a_model_of_keras_layers_is_keepable():
    inputs = tf.keras.Input((4,))
    shared = L.Dense(4)
    require_keepable(tf.keras.Model(inputs, L.Dense(2)(shared(shared(inputs)))))


def test_a_subclassed_model_is_refused_in_one_line():
    model = Subclassed()
    model(np.zeros((2, 4), np.float32))
    with pytest.raises(ModelError, match=r"net \(Subclassed\): must be a tf.keras.Sequential") as e:
        require_keepable(model)
    assert len(e.value.faults) == 1


def test_a_lambda_layer_is_refused_in_one_line():
    inner = tf.keras.Sequential([tf.keras.Input((4,)), L.Lambda(lambda x: 2 * x, name="twice")])
    model = tf.keras.Sequential(
        [tf.keras.Input((4,)), inner, L.Lambda(lambda x: x + 1, name="more"), L.Dense(2)],
        name="net",
    )
    with pytest.raises(ModelError) as e:
        require_keepable(model)
    places = [fault.partition(": holds Python code")[0] for fault in e.value.faults]
    assert places == [f"layer {inner.name}/twice (Lambda)", "layer more (Lambda)"]
    assert all("\n" not in fault and "use Keras' own layers" in fault for fault in e.value.faults)


class Unkept(L.Layer):
    """Holds another layer, which get_config does not tell."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def call(self, x):
        return self.inner(x)


def test_a_layer_that_no_file_keeps_is_refused_in_one_line():
    model = tf.keras.Sequential([tf.keras.Input((4,)), Unkept(L.Dense(2))], name="net")
    with pytest.raises(ModelError, match="net: can not be saved .* give layers of your own") as e:
        require_keepable(model)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 half a file", None])
def test_a_damaged_file_is_a_state_error(tmp_path, content):
    path = tmp_path / "model.keras"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(StateError, match="cannot be loaded as a Keras model"):
        load_keras(path)
