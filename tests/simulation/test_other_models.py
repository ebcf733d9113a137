"""Models with random layers, integer and several inputs, and values to predict, in TFF."""

import json
import sys
import types

import numpy as np
import pytest
import tensorflow as tf
from plans import digits_plan

from tf_dpfl.client_work.interface import interface_of
from tf_dpfl.data.columns import FederatedData
from tf_dpfl.protocol.errors import DataError
from tf_dpfl.protocol.plan import plan_from_dict, plan_to_dict
from tf_dpfl.simulation.process import build_learning_process
from tf_dpfl.simulation.runtime import tff_runtime
from tf_dpfl.simulation.shard import make_shards
from tf_dpfl.simulation.simulate import simulate

L = tf.keras.layers
CLIENTS, EACH = 4, 6


def plan_with(**local_training):
    tree = plan_to_dict(digits_plan())
    tree["local_training"].update(batch_size=3, epochs=2, **local_training)
    tree["clients"].update(
        population=CLIENTS, clients_per_round=CLIENTS, examples_per_client=EACH, sampling="fixed"
    )
    tree["privacy"].update(smallest_cohort=1, clip_norm=100.0, noise_multiplier=0.0, delta=0.1)
    tree["server"].update(rounds=2)
    return plan_from_dict(tree)


def data_of(inputs, target, classes=None):
    rows = CLIENTS * EACH
    assert all(len(values) == rows for values in (*inputs.values(), target))
    return FederatedData(
        inputs=inputs,
        target=target,
        offsets=np.arange(CLIENTS + 1) * EACH,
        feature_scale=1.0,
        classes=classes,
        test={**inputs, "y": target},
        client_names=tuple(map(str, range(CLIENTS))),
    )


def words_and_numbers():
    ids, numbers = tf.keras.Input([5], dtype="int32", name="ids"), tf.keras.Input([3], name="age")
    words = L.LSTM(4)(L.Embedding(7, 3, mask_zero=True)(ids))
    rows = tf.keras.Input([5, 3])
    inner = tf.keras.Model(rows, L.Bidirectional(L.GRU(2))(rows))
    words = L.Concatenate()([words, inner(L.Embedding(7, 3)(ids))])
    joined = L.Dense(4, "gelu")(L.Concatenate()([words, numbers]))
    return tf.keras.Model([ids, numbers], L.Dense(1, "sigmoid")(joined))


RNG = np.random.default_rng(0)
ROWS = CLIENTS * EACH
MIXED = {
    "x_ids": RNG.integers(0, 7, [ROWS, 5]).astype(np.int32),
    "x_age": RNG.normal(size=[ROWS, 3]).astype(np.float32),
}
YES_NO = RNG.integers(0, 2, [ROWS, 1]).astype(np.float32)


def keras_average(plan, model, data):
    """The readable loop: Keras' own layers, loss and Adam, client by client."""
    start = [v.numpy() for v in model.trainable_variables]
    total = [np.zeros_like(v) for v in start]
    for client in range(CLIENTS):
        local = tf.keras.models.clone_model(model)
        local.set_weights(model.get_weights())
        settings = plan.local_training
        optimizer = tf.keras.optimizers.Adam(
            settings.learning_rate, settings.beta_1, settings.beta_2, settings.epsilon
        )
        examples = data.client(client)
        for step in range(settings.epochs * EACH // settings.batch_size):
            begin = step * settings.batch_size % EACH
            rows = slice(begin, begin + settings.batch_size)
            with tf.GradientTape() as tape:
                prediction = local([examples["x_ids"][rows], examples["x_age"][rows]])
                loss = tf.keras.losses.BinaryCrossentropy()(examples["y"][rows], prediction)
            gradients = tape.gradient(loss, local.trainable_variables)
            gradients = map(tf.convert_to_tensor, gradients)
            optimizer.apply_gradients(zip(gradients, local.trainable_variables))
        total = [t + v.numpy() - s for t, v, s in zip(total, local.trainable_variables, start)]
    return [s + t / CLIENTS for s, t in zip(start, total)]


def test_two_inputs_a_recurrent_layer_and_adam_are_kerass():
    plan = plan_with(optimizer="adam", loss="binary_crossentropy", learning_rate=0.01, epsilon=1e-3)
    model, data = words_and_numbers(), data_of(MIXED, YES_NO)
    expected = keras_average(plan, model, data)
    interface = interface_of(model, plan.local_training)
    with tff_runtime():
        data = data.fitted(interface)
        process = build_learning_process(plan, model, data)
        shards = make_shards(data, np.arange(CLIENTS), plan)
        output = process.next(process.initialize(), shards)
        weights = process.get_model_weights(output.state).trainable
    for ours, theirs in zip(weights, expected):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_a_simulation_evaluates_yes_or_no(tmp_path):
    plan = plan_with(loss="binary_crossentropy")
    done = simulate(plan, tmp_path / "run", model=words_and_numbers(), data=data_of(MIXED, YES_NO))
    prediction = done.model.predict([MIXED["x_ids"], MIXED["x_age"]], verbose=0)
    assert done.accuracy == pytest.approx(((prediction > 0.5) == YES_NO).mean())


def test_a_simulation_of_values_has_a_loss_and_no_accuracy(tmp_path):
    plan = plan_with(loss="mean_squared_error")
    model = tf.keras.Sequential([L.InputLayer([3]), L.Dense(2)])
    targets = RNG.normal(size=[ROWS, 2]).astype(np.float32)
    data = data_of({"x": MIXED["x_age"]}, targets)
    done = simulate(plan, tmp_path / "run", model=model, data=data)
    last = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    prediction = done.model.predict(MIXED["x_age"], verbose=0)
    assert last["loss"] == pytest.approx(((prediction - targets) ** 2).mean(), rel=1e-4)
    assert done.accuracy is None


def test_a_plans_own_function_may_have_two_inputs_and_targets_at_every_step(tmp_path, monkeypatch):
    module = types.ModuleType("dpfl_models_in_memory")
    module.tagger = lambda classes: tf.keras.Model(*tagger(classes))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    tree = plan_to_dict(plan_with())
    tree["task"] = {"model": "dpfl_models_in_memory:tagger"}
    tags = RNG.integers(0, 3, [ROWS, 5]).astype(np.int32)
    run = simulate(plan_from_dict(tree), tmp_path / "run", data=data_of(MIXED, tags, classes=3))
    prediction = run.model.predict([MIXED["x_ids"], MIXED["x_age"]], verbose=0)
    assert run.accuracy == pytest.approx((prediction.argmax(-1) == tags).mean())


def tagger(classes):
    ids, numbers = tf.keras.Input([5], dtype="int32", name="ids"), tf.keras.Input([3], name="age")
    steps = L.Concatenate()([L.Embedding(7, 3)(ids), L.RepeatVector(5)(numbers)])
    return [ids, numbers], L.Dense(classes)(steps)


def test_dropout_is_drawn_for_each_user_and_round_and_is_reproducible():
    """The weights of a layer of ones behind a dropout tell which entries it dropped."""
    plan = plan_with(loss="mean_squared_error", learning_rate=0.1)
    model = tf.keras.Sequential([L.InputLayer([40]), L.Dropout(0.5), L.Dense(1, use_bias=False)])
    data = data_of({"x": np.ones([ROWS, 40], np.float32)}, np.ones([ROWS, 1], np.float32)).fitted(
        interface_of(model, plan.local_training)
    )
    seed = np.array([5, 6], np.int64)

    def moved(user, rounds=1):
        with tff_runtime():
            process = build_learning_process(plan, model, data, noise_seed=seed)
            state = process.initialize()
            for _ in range(rounds):
                state = process.next(state, make_shards(data, np.array([user]), plan)).state
            return np.asarray(process.get_model_weights(state).trainable[0])

    first, again, other = moved(0), moved(0), moved(1)
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-4
    assert len(np.unique((first - model.get_weights()[0]).round(6))) > 4


def test_data_that_do_not_fit_the_model_are_refused(tmp_path):
    model = tf.keras.Sequential([L.InputLayer([3], dtype="int32"), L.Embedding(9, 2), L.Flatten()])
    data = data_of({"x": MIXED["x_age"]}, RNG.integers(0, 6, ROWS).astype(np.int32), classes=6)
    with pytest.raises(DataError, match="x.*must be an integer"):
        simulate(plan_with(), tmp_path / "run", model=model, data=data)
