"""Clipping inside the TFLite interpreter, whose own sums are one running float32 sum."""

import numpy as np
import pytest
import tensorflow as tf

from tf_dpfl.client_work import update as client_update
from tf_dpfl.protocol.interpreter import load_interpreter


def clip_in_tflite(values, clip_norm):
    """`values` (float32 [d]) clipped by the TFLite form of the client's function."""
    function = tf.function(
        lambda update, clip_norm: {"clipped": client_update.clip_by_global_norm(update, clip_norm)},
        autograph=False,
    ).get_concrete_function(
        tf.TensorSpec(values.shape, tf.float32, "update"),
        tf.TensorSpec([], tf.float32, "clip_norm"),
    )
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function])
    interpreter = load_interpreter(converter.convert())
    interpreter.allocate_tensors()
    inputs = {tuple(detail["shape"]): detail["index"] for detail in interpreter.get_input_details()}
    interpreter.set_tensor(inputs[values.shape], values)
    interpreter.set_tensor(inputs[()], np.float32(clip_norm))
    interpreter.invoke()
    return interpreter.get_tensor(interpreter.get_output_details()[0]["index"])


@pytest.mark.parametrize("value", [0.1, 3.3])
def test_norm_of_millions_of_equal_entries_keeps_the_bound(value):
    clipped = clip_in_tflite(np.full(4_000_003, value, np.float32), 1.0)
    norm = np.linalg.norm(clipped.astype(np.float64))
    assert 0.9999 <= norm <= 1.0


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 3e38])
def test_update_with_a_nonfinite_norm_becomes_zero(bad):
    values = np.ones(300, np.float32)
    values[150] = bad
    assert not clip_in_tflite(values, 1.0).any()
