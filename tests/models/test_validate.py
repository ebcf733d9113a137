"""validate_model: every layer DP can not take is named with path, reason and remedy."""

from __future__ import annotations

import pytest
import tensorflow as tf

from models.validate import validate_model
from tf_dpfl.protocol.errors import ModelError

L = tf.keras.layers


def sequential(*layers, shape=(4, 3)) -> tf.keras.Model:
    return tf.keras.Sequential([tf.keras.Input(shape), *layers], name="net")


def faults_of(model) -> tuple[str, ...]:
    with pytest.raises(ModelError) as caught:
        validate_model(model)
    assert all("\n" not in fault for fault in caught.value.faults)
    return caught.value.faults


class Counting(L.Layer):
    """Changes a variable in training that is not trained."""

    def build(self, input_shape):
        self.seen = self.add_weight(name="seen", shape=(), initializer="zeros", trainable=False)

    def call(self, inputs, training=None):
        if training:
            self.seen.assign_add(1.0)
        return inputs


class AddsLoss(L.Layer):
    def call(self, inputs):
        self.add_loss(tf.reduce_sum(inputs))
        return inputs


class Subclassed(tf.keras.Model):
    def __init__(self):
        super().__init__(name="net")
        self.parts = [L.Dense(3), L.BatchNormalization(name="norm")]
        self.head = L.Dense(2)

    def call(self, inputs, training=None):
        for part in self.parts:
            inputs = part(inputs, training=training)
        return self.head(inputs)


def test_clean_models_pass():
    validate_model(sequential(L.Flatten(), L.Dense(2)))
    validate_model(sequential(L.LayerNormalization(), L.GRU(4), L.Dense(2)))
    validate_model(sequential(L.Bidirectional(L.LSTM(4)), L.Dense(2)))
    validate_model(sequential(L.Embedding(5, 3), L.Flatten(), L.Dense(2), shape=(4,)))
    constant = L.Normalization(mean=0.5, variance=2.0)
    validate_model(
        sequential(constant, L.Flatten(), L.GroupNormalization(2), L.Dropout(0.0), L.Dense(2))
    )


def test_attention_passes_with_and_without_dropout():
    for dropout in (0.0, 0.1):
        inputs = tf.keras.Input((4, 3))
        attended = L.MultiHeadAttention(2, 2, dropout=dropout, name="attend")(inputs, inputs)
        validate_model(tf.keras.Model(inputs, L.Dense(2)(L.Flatten()(attended))))


@pytest.mark.parametrize(
    "layer", [L.BatchNormalization(name="bn"), L.BatchNormalization(name="bn", synchronized=True)]
)
def test_batch_normalization_is_named_with_its_path_and_what_to_use(layer):
    inner = tf.keras.Sequential([L.Dense(3), layer], name="inner")
    outer = tf.keras.Sequential([L.Dense(3), inner], name="outer")
    (fault,) = faults_of(sequential(outer, L.Flatten(), L.Dense(2)))
    assert fault.startswith("layer outer/inner/bn (")
    assert "mixes the examples" in fault
    assert "GroupNormalization or LayerNormalization" in fault


def test_sync_batch_normalization_is_refused():
    layer = L.experimental.SyncBatchNormalization(name="bn")
    assert "GroupNormalization" in faults_of(sequential(layer, L.Flatten(), L.Dense(2)))[0]


def test_a_model_in_a_wrapper_is_looked_into():
    wrapped = L.TimeDistributed(tf.keras.Sequential([L.BatchNormalization(name="bn")]), name="time")
    assert "layer time/" in faults_of(sequential(wrapped, L.Flatten(), L.Dense(2)))[0]


def test_subclassed_model_is_looked_into_once_it_is_built():
    model = Subclassed()
    assert "has no weights yet" in faults_of(model)[0]
    model(tf.zeros([2, 3]))
    assert "layer norm (BatchNormalization)" in faults_of(model)[0]


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (L.RandomFlip(name="bad"), (8, 8, 1)),
        (L.RandomZoom(0.1, name="bad"), (8, 8, 1)),
        (L.ConvLSTM1D(4, 2, dropout=0.1, name="bad"), (4, 3, 2)),
    ],
)
def test_randomness_that_can_not_be_fed_is_refused(layer, shape):
    (fault,) = faults_of(sequential(layer, L.Flatten(), L.Dense(2), shape=shape))
    assert fault.startswith("layer bad")
    assert "can not be fed from outside; use Dropout" in fault


@pytest.mark.parametrize(
    "layer",
    [
        L.Dropout(0.2),
        L.SpatialDropout1D(0.2),
        L.GaussianNoise(0.1),
        L.GaussianDropout(0.1),
        L.AlphaDropout(0.1),
        L.Dropout(0.2, name="my_dropout_3"),
        L.LSTM(4, dropout=0.1),
        L.GRU(4, recurrent_dropout=0.1),
        L.Bidirectional(L.LSTM(4, dropout=0.1)),
    ],
)
def test_layers_whose_randomness_is_fed_pass(layer):
    validate_model(sequential(layer, L.Flatten(), L.Dense(2), shape=(4, 3)))


@pytest.mark.parametrize(
    "layer",
    [
        L.Dense(3, kernel_constraint="non_neg", name="bad"),
        L.Dense(3, bias_constraint="max_norm", name="bad"),
        L.GRU(3, recurrent_constraint="unit_norm", name="bad"),
    ],
)
def test_constraints_that_no_step_would_keep_to_are_refused(layer):
    (fault,) = faults_of(sequential(layer, L.Flatten(), L.Dense(2)))
    assert fault.startswith("layer bad")
    assert "constrains its weights (" in fault and "remove the constraint" in fault


def test_spectral_normalization_is_refused_with_what_to_use():
    layer = L.SpectralNormalization(L.Dense(3), name="spectral")
    (fault,) = faults_of(sequential(layer, L.Flatten(), L.Dense(2)))
    assert fault.startswith("layer spectral (SpectralNormalization)")
    assert "LayerNormalization" in fault


class Compiled(L.Layer):
    """A layer whose author wrote tf.function: no randomness, whatever the op is called."""

    @tf.function
    def call(self, x):
        return tf.tanh(x)


def test_a_function_inside_a_layer_is_not_taken_for_randomness():
    validate_model(sequential(Compiled(), L.Flatten(), L.Dense(2)))


class FailsEagerly(L.Layer):
    def call(self, x):
        return tf.math.segment_sum(x, [0])


def test_a_layer_that_fails_on_two_examples_is_one_fault():
    (fault,) = faults_of(sequential(FailsEagerly(), L.Flatten(), L.Dense(2)))
    assert "InvalidArgumentError" in fault or "fails" in fault


def test_randomness_beside_a_fed_layer_is_found():
    hidden = L.Lambda(lambda x: x + tf.random.normal(tf.shape(x)))
    (fault,) = faults_of(sequential(L.Dropout(0.5), hidden, L.Flatten(), L.Dense(2)))
    assert "draws random numbers" in fault


def test_a_frozen_batch_normalisation_passes():
    frozen = L.BatchNormalization(trainable=False)
    validate_model(sequential(frozen, L.Flatten(), L.Dense(2)))


def test_integer_and_several_inputs_are_looked_at():
    ids, values = tf.keras.Input([3], dtype="int32"), tf.keras.Input([4])
    mixed = L.Flatten()(L.Embedding(2, 3)(ids)) + tf.reduce_mean(L.Dense(9)(values), axis=0)
    (fault,) = faults_of(tf.keras.Model([ids, values], L.Dense(2)(mixed)))
    assert "one example changes" in fault


def test_randomness_hidden_in_a_function_is_found():
    layer = L.Lambda(lambda x: x + tf.random.normal(tf.shape(x)), name="noise")
    inner = tf.keras.Sequential([tf.keras.Input((3,)), layer], name="inner")
    (fault,) = faults_of(sequential(inner, L.Flatten(), L.Dense(2), shape=(3,)))
    assert fault.startswith("layer inner/noise (Lambda): draws random numbers")


def test_stateful_recurrence_is_refused():
    model = tf.keras.Sequential(
        [
            tf.keras.Input(batch_shape=(2, 4, 3)),
            L.Bidirectional(L.LSTM(4, stateful=True), name="both"),
            L.Dense(2),
        ]
    )
    faults = faults_of(model)
    assert sum("use stateful=False" in fault for fault in faults) == 2
    assert any("fixed size" in fault for fault in faults)


def test_variable_changed_but_not_trained_is_refused_and_left_unchanged():
    model = sequential(Counting(name="count"), L.Flatten(), L.Dense(2))
    (fault,) = faults_of(model)
    assert "count/seen" in fault
    assert float(model.get_layer("count").seen) == 0.0


def test_example_mixing_hidden_in_a_function_is_found():
    layer = L.Lambda(lambda x: x - tf.reduce_mean(x, axis=0), name="centred")
    (fault,) = faults_of(sequential(L.Dense(3), layer, L.Flatten(), L.Dense(2)))
    assert fault.startswith("layer centred (Lambda): one example changes another one's logits")


def test_dropout_in_predictions_is_not_taken_for_mixing():
    x = tf.keras.Input((64,))  # so many that no two draws are alike
    (fault,) = faults_of(tf.keras.Model(x, L.Dense(2)(L.Dropout(0.5)(x, training=True))))
    assert "draws random numbers for predictions, too" in fault


@pytest.mark.parametrize("kind", ["kernel", "bias", "activity"])
def test_regularizers_are_refused_by_layer(kind):
    bad = L.Dense(2, name="bad", **{f"{kind}_regularizer": "l2"})
    (fault,) = faults_of(sequential(L.Flatten(), bad))
    assert fault.startswith(f"layer bad (Dense): {kind}_regularizer")


def test_added_loss_is_refused():
    (fault,) = faults_of(sequential(AddsLoss(), L.Flatten(), L.Dense(2)))
    assert "add_loss" in fault


def test_softmax_passes():
    validate_model(sequential(L.Flatten(), L.Dense(4), L.Softmax()))
    validate_model(sequential(L.Flatten(), L.Dense(4, activation="softmax"), L.Dense(2)))


def test_other_weights_than_float32_are_refused():
    faults = faults_of(sequential(L.Flatten(), L.Dense(2, name="wide", dtype="float64")))
    assert "layer wide (Dense): has weights or arithmetic in float64" in faults[0]
    half = L.Dense(2, name="half", dtype=tf.keras.mixed_precision.Policy("mixed_bfloat16"))
    assert "bfloat16" in faults_of(sequential(L.Flatten(), half))[0]


def test_model_without_trainable_weights_is_refused():
    assert "no trainable weights" in faults_of(sequential(L.Flatten()))[0]
    frozen = sequential(L.Flatten(), L.Dense(2))
    frozen.trainable = False
    assert "no trainable weights" in faults_of(frozen)[0]


def test_model_with_two_outputs_is_refused():
    inputs = tf.keras.Input((3,))
    assert (
        "one output"
        in faults_of(tf.keras.Model(inputs, [L.Dense(2)(inputs), L.Dense(2)(inputs)]))[0]
    )


def test_all_faults_are_reported_at_once():
    faults = faults_of(
        sequential(
            L.BatchNormalization(name="a"),
            L.LSTM(3, recurrent_constraint="non_neg", name="b"),
            L.Dense(2, name="c", kernel_regularizer="l2"),
            shape=(4, 3),
        )
    )
    assert [fault.split()[1] for fault in faults] == ["a", "b/lstm_cell", "c"]


def test_validation_leaves_weights_and_a_compiled_model_alone():
    model = sequential(L.Flatten(), L.Dense(2))
    model.compile("sgd", "mse", metrics=["accuracy"])
    before = model.get_weights()
    validate_model(model)
    assert all((a == b).all() for a, b in zip(before, model.get_weights()))
