"""Local optimizers that go on from a user's last round: the process and a whole run."""

import json
from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf
from kills import simulate_until_killed
from plans import digits_plan, small_mlp, with_server

from tf_dpfl.data.federated import load_federated_data
from tf_dpfl.protocol.errors import StateError
from tf_dpfl.simulation.optimizer_states import OptimizerStates
from tf_dpfl.simulation.process import build_learning_process
from tf_dpfl.simulation.records import OPTIMIZER_STATE
from tf_dpfl.simulation.runtime import tff_runtime
from tf_dpfl.simulation.shard import make_shards
from tf_dpfl.simulation.simulate import simulate

COHORTS = ([3, 5, 8, 13], [5], [3, 8, 21], [3, 5, 8, 21, 13])
SIZE = sum(v.numpy().size for v in small_mlp().trainable_variables)


def keep_plan(optimizer="momentum", rate=0.05, **privacy):
    plan = digits_plan(**{"clip_norm": 1e6, "smallest_cohort": 1, **privacy})
    local = replace(
        plan.local_training, optimizer=optimizer, learning_rate=rate, optimizer_state="keep"
    )
    return replace(plan, local_training=local)


@pytest.fixture(scope="module")
def data():
    return load_federated_data(digits_plan())


def keras_optimizer(settings):
    if settings.optimizer == "momentum":
        return tf.keras.optimizers.legacy.SGD(settings.learning_rate, settings.momentum)
    return tf.keras.optimizers.legacy.Adam(
        settings.learning_rate, settings.beta_1, settings.beta_2, epsilon=settings.epsilon
    )


def readable_rounds(plan, model, data, *, keep):
    """Federated averaging by a loop, each user with a Keras optimizer of its own."""
    local = tf.keras.models.clone_model(model)
    loss = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    size, weights, optimizers = plan.local_training.batch_size, model.get_weights(), {}
    for cohort in COHORTS:
        total = [np.zeros(w.shape) for w in weights]
        for user in cohort:
            if user not in optimizers or not keep:
                optimizers[user] = keras_optimizer(plan.local_training)
            local.set_weights(weights)
            x, y = data.client(user).values()
            for _ in range(plan.local_training.epochs):
                for begin in range(0, len(y), size):
                    with tf.GradientTape() as tape:
                        value = loss(y[begin : begin + size], local(x[begin : begin + size]))
                    gradients = tape.gradient(value, local.trainable_variables)
                    optimizers[user].apply_gradients(zip(gradients, local.trainable_variables))
            total = [t + a - b for t, a, b in zip(total, local.get_weights(), weights)]
        weights = [w + t / plan.clients.clients_per_round for w, t in zip(weights, total)]
    return np.concatenate([w.ravel() for w in weights])


def tff_rounds(plan, model, data, folder, *, places=None, cohorts=COHORTS):
    """Flat weights after the cohorts' rounds, and the users' states."""
    process = build_learning_process(plan, model, data, noise_seed=np.array([1, 2]))
    size = plan.local_training.kept_values(weights=SIZE)
    states = OptimizerStates(folder, population=plan.clients.population, size=size)
    state = process.initialize()
    for number, cohort in enumerate(cohorts, 1):
        users = np.array(cohort, np.int64)
        shards = make_shards(data, users, plan, places=places, optimizer_states=states.of(users))
        output = process.next(state, shards)
        state, kept = output.state, output.metrics["kept"]
        assert sorted(kept["user_id"]) == sorted(cohort)
        states.put(kept["user_id"], kept[OPTIMIZER_STATE])
        if number % 2:
            states.save(number)
    weights = process.get_model_weights(state).trainable
    return np.concatenate([np.asarray(w).ravel() for w in weights]), states


@pytest.mark.parametrize(("optimizer", "rate"), [("momentum", 0.05), ("adam", 0.01)])
def test_rounds_are_those_of_keras_optimizers_that_are_kept(data, tmp_path, optimizer, rate):
    plan, model = keep_plan(optimizer, rate), small_mlp()
    expected = readable_rounds(plan, model, data, keep=True)
    with tff_runtime():
        weights, _ = tff_rounds(plan, model, data, tmp_path / "states")
    np.testing.assert_allclose(weights, expected, atol=3e-5)
    reset = readable_rounds(plan, model, data, keep=False)
    assert np.abs(expected - reset).max() > 1e-2  # the figures can tell


def test_the_result_does_not_depend_on_the_shards(data, tmp_path):
    plan, model = keep_plan(), small_mlp()
    with tff_runtime():
        one, _ = tff_rounds(plan, model, data, tmp_path / "a", places=1)
        many, _ = tff_rounds(plan, model, data, tmp_path / "b", places=8)
    np.testing.assert_allclose(one, many, atol=1e-6)


def test_a_user_keeps_its_state_while_others_train(data, tmp_path):
    plan, model, user = keep_plan(), small_mlp(), np.array([3], np.int64)
    with tff_runtime():
        _, before = tff_rounds(plan, model, data, tmp_path / "a", cohorts=([3, 5],))
        _, after = tff_rounds(plan, model, data, tmp_path / "b", cohorts=([3, 5], [5]))
    assert before.of(user).any()
    np.testing.assert_array_equal(after.of(user), before.of(user))


def test_a_broken_update_leaves_the_state_as_it_was(data):
    plan, users = keep_plan(), np.array([3, 5], np.int64)
    states = np.zeros((2, SIZE), np.float32)
    states[1] = 3e38
    with tff_runtime():
        process = build_learning_process(plan, small_mlp(), data)
        shards = make_shards(data, users, plan, optimizer_states=states)
        metrics = process.next(process.initialize(), shards).metrics
    kept = dict(zip(metrics["kept"]["user_id"], metrics["kept"][OPTIMIZER_STATE]))
    assert metrics["nonfinite"] == 1
    np.testing.assert_array_equal(kept[5], states[1])
    assert kept[3].any()


def test_a_state_that_alone_overflows_stays_what_it_was(data):
    """Gradients of 1e20: Adam's squares are infinite, and its step is zero."""
    plan, users = keep_plan("adam", 0.01), np.array([3], np.int64)
    one_step = replace(plan.local_training, epochs=1, batch_size=10)
    plan = replace(plan, local_training=one_step)
    layers = tf.keras.layers
    model = tf.keras.Sequential(
        [layers.InputLayer((8, 8, 1)), layers.Flatten(), layers.Dense(10, use_bias=False)]
    )
    state = np.ones((1, plan.local_training.kept_values(weights=640)), np.float32)
    far = replace(data, feature_scale=1e-20)
    with tff_runtime():
        process = build_learning_process(plan, model, far)
        shards = make_shards(far, users, plan, optimizer_states=state)
        metrics = process.next(process.initialize(), shards).metrics
    assert metrics["nonfinite"] == 0
    np.testing.assert_array_equal(metrics["kept"][OPTIMIZER_STATE], state)


def test_shards_need_the_states_of_a_plan_that_keeps_them_and_no_other_takes_any(data):
    users = np.array([1, 2], np.int64)
    with pytest.raises(ValueError, match='optimizer_state="keep" goes with optimizer_states'):
        make_shards(data, users, keep_plan())
    with pytest.raises(ValueError, match='"reset" goes without'):
        make_shards(data, users, digits_plan(), optimizer_states=np.zeros((2, 3), np.float32))


# A whole run.

RUN_PLAN = with_server(keep_plan(noise_multiplier=1.0, clip_norm=0.5, smallest_cohort=4), rounds=7)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("runs") / "whole"
    return simulate(RUN_PLAN, folder, data=data, seed=7)


def test_a_run_killed_twice_ends_as_one_that_was_not(finished, data, tmp_path):
    folder = tmp_path / "killed"
    for number in (3, 5):
        simulate_until_killed(RUN_PLAN, folder, in_round=number)
    again = simulate(RUN_PLAN, folder, data=data, seed=7)
    for ours, theirs in zip(again.model.get_weights(), finished.model.get_weights()):
        np.testing.assert_array_equal(ours, theirs)


def test_forgetting_the_states_changes_the_run(finished, data, tmp_path, monkeypatch):
    monkeypatch.setattr(OptimizerStates, "put", lambda *_: None)
    fresh = simulate(RUN_PLAN, tmp_path / "fresh", data=data, seed=7)
    moved = [
        np.abs(a - b).max() for a, b in zip(fresh.model.get_weights(), finished.model.get_weights())
    ]
    assert max(moved) > 1e-3


def test_states_are_for_the_owner_alone_and_named_as_private(finished):
    files = list((finished.folder / "optimizer_states").iterdir())
    assert files
    for path in [*files, files[0].parent]:
        assert path.stat().st_mode & 0o077 == 0
    assert "optimizer_state" not in json.dumps(finished.card.to_json())


# The files alone.


def filled(folder, *, rounds=6, population=30, size=5):
    """States with what each user should have, after saves each round."""
    rng = np.random.default_rng(0)
    states = OptimizerStates(folder, population=population, size=size)
    expected = np.zeros((population, size), np.float32)
    for number in range(1, rounds + 1):
        users = rng.choice(population, 8, replace=False)
        expected[users] = rng.normal(size=(8, size))
        states.put(users, expected[users])
        np.testing.assert_array_equal(states.of(np.arange(population)), expected)
        states.save(number)
        np.testing.assert_array_equal(states.of(np.arange(population)), expected)
    return states, expected


def test_places_of_a_checkpoint_are_all_that_is_needed_to_go_on(tmp_path):
    states, expected = filled(tmp_path / "s")
    places = states.places
    states.put(np.arange(30), np.ones((30, 5), np.float32))  # of rounds to be repeated
    states.save(9)
    again = OptimizerStates(tmp_path / "s", population=30, size=5, places=places)
    np.testing.assert_array_equal(again.of(np.arange(30)), expected)


def test_files_take_at_most_twice_the_states_and_those_of_the_checkpoint_before(tmp_path):
    filled(tmp_path / "s", rounds=60, population=30, size=500)
    used = sum(path.stat().st_size for path in (tmp_path / "s").iterdir())
    assert used < 3.2 * 30 * 500 * 4


@pytest.mark.parametrize("damage", ["missing", "short", "flipped", "another"])
def test_a_damaged_file_is_named_and_never_taken_for_fresh_states(tmp_path, damage):
    states, _ = filled(tmp_path / "s")
    path = max((tmp_path / "s").iterdir())
    content = bytearray(path.read_bytes())
    if damage == "missing":
        path.unlink()
    elif damage == "another":
        np.save(path, np.zeros((3, 4)))
    else:
        content[-3] ^= 64
        path.write_bytes(content[:-40] if damage == "short" else content)
    with pytest.raises(StateError, match=rf"{path.name}: .*put it back"):
        states.of(np.arange(30))
