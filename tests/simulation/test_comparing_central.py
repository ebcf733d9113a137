"""Central training: every record as often as it should be, Keras' own steps, resumed exactly."""

import json
from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf
from plans import digits_plan, small_mlp, with_server

from tf_dpfl.data.federated import load_federated_data
from tf_dpfl.protocol.errors import StateError
from tf_dpfl.simulation.central_run import (
    CentralSchedule,
    rows_of_everybody,
    run_centrally,
    schedule_of,
    stored_bytes,
)
from tf_dpfl.simulation.cohort import derive_bytes
from tf_dpfl.simulation.records import shard_of
from tf_dpfl.simulation.run_folder import RunFolder

SEED = bytes(range(32))
PLAN = with_server(digits_plan(), rounds=8)


def with_local(**values):
    return replace(PLAN, local_training=replace(PLAN.local_training, **values))


@pytest.fixture(scope="module")
def data():
    return load_federated_data(PLAN)


@pytest.fixture
def model():
    tf.keras.utils.set_random_seed(3)
    return small_mlp()


def trained(plan, folder, model, data, emit=lambda event: None):
    run_centrally(plan, RunFolder(folder, SEED, True), model, data, emit)
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_it_sees_every_users_records_and_no_others(data):
    plan = replace(PLAN, clients=replace(PLAN.clients, examples_per_client=7))
    rows = rows_of_everybody(data, plan.clients)
    users = np.arange(data.population)
    federated = shard_of(data, users, replace(plan, simulation=replace(plan.simulation)))
    assert len(rows) == schedule_of(plan, data).records == federated["count"].sum() == 40 * 7
    np.testing.assert_array_equal(data.inputs["x"][rows], federated["x"])
    np.testing.assert_array_equal(data.target[rows], federated["y"])


@pytest.mark.parametrize(
    ("records", "batch_size", "passes_per_round", "rounds"),
    [(400, 4, 0.4, 8), (10, 3, 2.0, 3), (7, 100, 0.5, 4), (20_000, 9000, 0.75, 4), (5, 1, 0.1, 50)],
)
def test_each_pass_is_over_every_record_once(records, batch_size, passes_per_round, rounds):
    schedule = CentralSchedule(records, batch_size, passes_per_round, rounds)
    seen, steps = {}, 0
    for number in range(1, rounds + 1):
        for number_of_pass, piece in schedule.pieces(number):
            assert piece.start % batch_size == 0  # whole batches
            seen.setdefault(number_of_pass, []).extend(range(piece.start, piece.stop))
            steps += -(-(piece.stop - piece.start) // batch_size)
    whole = [seen[n] for n in range(int(schedule.passes))]
    assert all(order == list(range(records)) for order in whole)
    assert steps == round(schedule.passes * schedule.steps_per_pass) and whole


def test_passes_are_as_many_as_the_federated_users_are_expected_to_make(data):
    clients, local = PLAN.clients, PLAN.local_training
    expected = PLAN.server.rounds * clients.clients_per_round * local.epochs / clients.population
    assert schedule_of(PLAN, data).passes == pytest.approx(expected) == 3.2


@pytest.mark.parametrize(
    ("local", "optimizer"),
    [
        (
            {"optimizer": "momentum", "learning_rate": 0.05, "proximal": 3.0},
            tf.keras.optimizers.SGD(0.05, momentum=0.9),
        ),
        ({"optimizer": "adam", "learning_rate": 0.01}, tf.keras.optimizers.Adam(0.01)),
    ],
)
def test_it_is_what_keras_fit_does(tmp_path, data, model, local, optimizer):
    plan = with_server(with_local(**local), rounds=5)  # two whole passes
    keras = tf.keras.models.clone_model(model)
    keras.set_weights(model.get_weights())
    metrics = trained(plan, tmp_path / "central", model, data)
    loss = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    keras.compile(optimizer, loss, metrics=["accuracy"])
    features = np.asarray(data.inputs["x"], np.float32) / np.float32(data.feature_scale)
    for number in range(2):
        seed = int.from_bytes(derive_bytes(SEED, f"pass {number}"), "little")
        order = np.random.default_rng(seed).permutation(400)
        keras.fit(
            features[order], data.target[order], batch_size=4, epochs=1, shuffle=False, verbose=0
        )
    for found, expected in zip(model.get_weights(), keras.get_weights()):
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)
    measured = keras.evaluate(data.test["x"], data.test["y"], verbose=0)[1]
    assert metrics[-1]["accuracy"] == pytest.approx(measured, abs=2 / data.test_examples)
    assert metrics[-1]["accuracy"] > 0.5
    assert sum(record["examples"] for record in metrics) == 2 * 400


def test_stopped_anywhere_it_goes_on_to_the_same_weights(tmp_path, data, model):
    plan = with_local(optimizer="adam", learning_rate=0.01)
    start = model.get_weights()
    whole = trained(plan, tmp_path / "whole", model, data)
    expected = model.get_weights()

    def stop(event):
        if event["round"] == 5:  # a checkpoint is written every 2 rounds
            raise KeyboardInterrupt

    model.set_weights(start)
    with pytest.raises(KeyboardInterrupt):
        trained(plan, tmp_path / "part", model, data, stop)
    model.set_weights(start)
    ran = []
    again = trained(plan, tmp_path / "part", model, data, lambda event: ran.append(event["round"]))
    assert ran == [5, 6, 7, 8]
    for found, wanted in zip(model.get_weights(), expected):
        np.testing.assert_array_equal(found, wanted)
    figures = ("round", "examples", "accuracy", "loss")
    assert [[r.get(f) for f in figures] for r in again] == [
        [r.get(f) for f in figures] for r in whole
    ]
    kept = tf.keras.models.load_model(tmp_path / "part" / "model.keras", compile=False)
    np.testing.assert_array_equal(kept.get_weights()[0], expected[0])


def test_a_checkpoint_of_another_model_is_refused(tmp_path, data, model):
    trained(PLAN, tmp_path / "run", model, data)
    layers = [tf.keras.Input((8, 8, 1)), tf.keras.layers.Flatten(), tf.keras.layers.Dense(10)]
    with pytest.raises(StateError, match="another model"):
        trained(PLAN, tmp_path / "run", tf.keras.Sequential(layers), data)


def test_random_layers_draw_other_masks_at_each_step(tmp_path, data):
    layers = [
        tf.keras.Input((8, 8, 1)),
        tf.keras.layers.Flatten(),
        tf.keras.layers.Dropout(0.5),
        tf.keras.layers.Dense(10),
    ]
    model = tf.keras.Sequential(layers)
    plan = with_server(PLAN, rounds=5)
    metrics = trained(plan, tmp_path / "run", model, data)
    assert metrics[-1]["accuracy"] > 0.5  # one mask for ever would hide half of the pixels


def test_what_is_brought_to_one_place_is_the_records_bytes(data):
    per_record = data.inputs["x"][0].nbytes + data.target.itemsize
    assert stored_bytes(data, PLAN) == 400 * per_record
