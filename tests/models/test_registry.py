"""The model registry: what a plan's model name may be and what comes back."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from models.registry import build_model, registered_models
from models.validate import validate_model
from tf_dpfl.protocol.errors import ModelError

USER_MODULE = """
import tensorflow as tf

def both(input_shape, classes):
    return tf.keras.Sequential([
        tf.keras.Input(input_shape), tf.keras.layers.Flatten(), tf.keras.layers.Dense(classes)])

def only_classes(*, classes):
    return both((4, 4, 1), classes)

def neither():
    return both((4, 4, 1), 3)

def anything(**sizes):
    return both(**sizes)

def with_default(input_shape, classes, width=7):
    return tf.keras.Sequential([
        tf.keras.Input(input_shape), tf.keras.layers.Flatten(), tf.keras.layers.Dense(width),
        tf.keras.layers.Dense(classes)])

def unbuilt(classes):
    return tf.keras.Sequential([tf.keras.layers.Flatten(), tf.keras.layers.Dense(classes)])

def needs_more(input_shape, depth):
    return both(input_shape, 3)

def string():
    return "no model"

def leaves(classes):
    raise SystemExit(3)

def fails(classes):
    raise RuntimeError("first line\\nsecond line")

def image_out(input_shape):
    return tf.keras.Sequential([tf.keras.Input(input_shape), tf.keras.layers.Dense(3)])

def two_out(input_shape, classes):
    inputs = tf.keras.Input(input_shape)
    flat = tf.keras.layers.Flatten()(inputs)
    dense = tf.keras.layers.Dense(classes)
    return tf.keras.Model(inputs, [dense(flat), dense(flat)])

def two_in(input_shape, classes):
    a, b = tf.keras.Input(input_shape, name="left"), tf.keras.Input(input_shape, name="right")
    return tf.keras.Model([a, b], tf.keras.layers.Dense(classes)(tf.keras.layers.Flatten()(a + b)))

def ids_and_numbers(input_shape, classes):
    shapes = {name: tuple(shape) for name, shape in input_shape.items()}
    words = tf.keras.Input(shapes["x_words"], name="words", dtype="int32")
    age = tf.keras.Input((1,), name="age")
    mean = tf.keras.layers.GlobalAveragePooling1D()(tf.keras.layers.Embedding(9, 2)(words))
    both = tf.keras.layers.Concatenate()([mean, age])
    return tf.keras.Model([words, age], tf.keras.layers.Dense(classes)(both))

def tagger(classes):
    return tf.keras.Sequential([
        tf.keras.Input((6,), dtype="int32"), tf.keras.layers.Embedding(9, 2),
        tf.keras.layers.Dense(classes)])

constant = 3
"""


@pytest.fixture
def user_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "dpfl_users_model.py").write_text(USER_MODULE)
    (tmp_path / "dpfl_broken_model.py").write_text("import dpfl_no_such_thing\n")
    (tmp_path / "dpfl_typo_model.py").write_text("def f(:\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "dpfl_users_model"
    for name in ("dpfl_users_model", "dpfl_broken_model", "dpfl_typo_model"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("name", list(registered_models()))
@pytest.mark.parametrize("shape", [(28, 28, 1), (8, 8, 1), (32, 24, 3)])
def test_registered_models_are_described_valid_and_give_logits(name, shape):
    assert "\n" not in registered_models()[name]
    assert registered_models()[name].endswith(".")
    model = build_model(name, input_shape=shape, classes=7)
    assert model(tf.zeros([5, *shape])).shape == (5, 7)
    validate_model(model)


@pytest.mark.parametrize("name", ["linear", "mlp"])
def test_dense_models_flatten_any_shape(name):
    for shape in [(1,), (3, 2), (2, 2, 2, 2)]:
        assert build_model(name, input_shape=shape, classes=2)(tf.ones([1, *shape])).shape == (1, 2)


def test_names_and_weights_count_of_mlp():
    model = build_model("mlp", input_shape=(28, 28, 1), classes=10)
    assert model.count_params() == 784 * 128 + 128 + 128 * 10 + 10


def test_cnn_for_28x28_is_exactly_the_published_one():
    model = build_model("cnn", input_shape=(28, 28, 1), classes=10)
    shapes = [tuple(w.shape) for w in model.trainable_weights]
    assert shapes == [
        (8, 8, 1, 16), (16,), (4, 4, 16, 32), (32,), (512, 32), (32,), (32, 10), (10,),
    ]  # fmt: skip
    assert [layer.output_shape[1:] for layer in model.layers][:4] == [
        (14, 14, 16), (13, 13, 16), (5, 5, 32), (4, 4, 32),
    ]  # fmt: skip
    assert model.count_params() == 26010
    first, second = model.layers[0], model.layers[2]
    assert (first.strides, first.padding) == ((2, 2), "same")
    assert (second.strides, second.padding) == ((2, 2), "valid")


def test_cnn_pads_below_13_pixels_and_refuses_below_7():
    for side, padding in [(7, "same"), (12, "same"), (13, "valid")]:
        model = build_model("cnn", input_shape=(side, 28, 1), classes=2)
        assert model.get_layer("convolution_2").padding == padding
    for shape in [(6, 28, 1), (28, 6, 1), (28, 28), (784,)]:
        with pytest.raises(ModelError, match="sides of at least 7; use mlp or linear"):
            build_model("cnn", input_shape=shape, classes=2)


def test_variable_names_do_not_depend_on_models_built_before():
    names = [
        [w.name for w in build_model("cnn", input_shape=(8, 8, 1), classes=2).weights]
        for _ in range(2)
    ]
    assert names[0] == names[1]


@pytest.mark.parametrize(
    "function", ["both", "only_classes", "neither", "anything", "with_default", "unbuilt"]
)
def test_user_function_gets_the_keywords_its_signature_names(user_module, function):
    model = build_model(f"{user_module}:{function}", input_shape=(4, 4, 1), classes=3)
    assert np.isfinite(model(tf.ones([2, 4, 4, 1])).numpy()).all()
    assert model.built


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet", r"'resnet' is not a registered model \(linear, mlp, cnn\)"),
        ("", "is not a registered model"),
        ("no_such_module:f", "module no_such_module can not be imported: ModuleNotFoundError"),
        ("dpfl_broken_model:f", "No module named 'dpfl_no_such_thing'"),
        ("dpfl_typo_model:f", "can not be imported: SyntaxError"),
        ("dpfl_users_model:", "must be"),
        (":f", "must be"),
        ("dpfl_users_model:leaves", "failed: SystemExit: 3"),
        (
            "dpfl_users_model:absent",
            r"absent in dpfl_users_model \(.*\.py\) is nothing, not a function",
        ),
        (
            "dpfl_users_model:constant",
            r"constant in dpfl_users_model \(.*\.py\) is int, not a function",
        ),
        ("dpfl_users_model:needs_more", "requires depth"),
        ("dpfl_users_model:string", "returned str; it must return a Keras model"),
        ("dpfl_users_model:fails", "failed: RuntimeError: first line$"),
        ("dpfl_users_model:image_out", "must give one tensor of logits"),
        ("dpfl_users_model:two_out", "two examples give list"),
        (
            "dpfl_users_model:two_in",
            r"has the inputs \['x_left', 'x_right'\], the data's .* \['x'\]",
        ),
    ],
)
def test_bad_models_are_refused_in_one_line(user_module, name, message):
    with pytest.raises(ModelError, match=message) as caught:
        build_model(name, input_shape=(4, 4, 1), classes=3)
    assert len(caught.value.faults) == 1
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("shape", "classes", "message"),
    [
        ((5, 5, 1), 3, r"takes examples of shape \[4, 4, 1\], the data's are \[5, 5, 1\]"),
        ((16,), 3, r"the data's are \[16\]"),
        ((4, 4, 1), 4, "gives 3 logits an example, the data have 4 classes"),
    ],
)
def test_shape_mismatch_with_the_data_is_refused(user_module, shape, classes, message):
    with pytest.raises(ModelError, match=message):
        build_model(f"{user_module}:neither", input_shape=shape, classes=classes)


def test_a_sequential_model_without_input_keeps_its_batch_size_open(user_module):
    model = build_model("dpfl_users_model:unbuilt", input_shape=(4, 4, 1), classes=3)
    assert model.input_shape == (None, 4, 4, 1)
    validate_model(model)


def test_a_model_of_several_inputs_takes_the_arrays_of_their_names(user_module):
    name = f"{user_module}:ids_and_numbers"
    model = build_model(name, input_shape={"x_age": (), "x_words": (5,)}, classes=3)
    assert [spec.shape[1:].as_list() for spec in model.inputs] == [[5], [1]]
    with pytest.raises(ModelError, match=r"shape \[1\] in x_age, the data's are \[2\]"):
        build_model(name, input_shape={"x_age": (2,), "x_words": (5,)}, classes=3)
    with pytest.raises(ModelError, match="called x_ and the input's name"):
        build_model(name, input_shape={"x_words": (5,), "x_old": (1,)}, classes=3)


def test_a_model_may_predict_at_every_step_of_the_target(user_module):
    name = f"{user_module}:tagger"
    build_model(name, input_shape=(6,), classes=4, positions=(6,))
    for positions in ((), (5,), (6, 1)):
        with pytest.raises(ModelError, match=r"one tensor of logits \[n, .*4\]"):
            build_model(name, input_shape=(6,), classes=4, positions=positions)
