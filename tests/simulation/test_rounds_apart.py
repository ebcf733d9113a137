"""What must not leak from one round, user or run into another: noise, optimizer, examples."""

from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf
from plans import digits_plan, small_mlp, with_server

from tf_dpfl.data.columns import FederatedData
from tf_dpfl.data.federated import load_federated_data
from tf_dpfl.simulation import simulate as simulation
from tf_dpfl.simulation.checkpoints import load_newest_checkpoint, save_checkpoint
from tf_dpfl.simulation.process import build_learning_process
from tf_dpfl.simulation.runtime import tff_runtime
from tf_dpfl.simulation.shard import make_shards

USERS = np.arange(6, dtype=np.int64)


@pytest.fixture(scope="module")
def data():
    return load_federated_data(digits_plan())


def joined(tensors):
    return np.concatenate([np.asarray(t, np.float64).ravel() for t in tensors])


def weights_after(process, state):
    return joined(process.get_model_weights(state).trainable)


def without_training(**privacy):
    """A plan whose updates are zero, so that a round's step is its noise alone."""
    plan = digits_plan(**privacy)
    return replace(plan, local_training=replace(plan.local_training, learning_rate=1e-30))


def test_the_servers_noise_is_drawn_anew_for_every_round(data):
    plan = without_training(noise="server", noise_multiplier=3.0)
    with tff_runtime():
        process = build_learning_process(
            plan, small_mlp(), data, noise_seed=np.array([1, 2], np.int64)
        )
        state, seen = process.initialize(), []
        before = weights_after(process, state)
        for _ in range(2):
            state = process.next(state, make_shards(data, USERS, plan)).state
            after = weights_after(process, state)
            seen.append(after - before)
            before = after
    assert abs(np.corrcoef(*seen)[0, 1]) < 5 / np.sqrt(len(before))


def test_the_users_of_a_shard_draw_independent_noise(data):
    """The round's noise is a sum of shares: n independent ones, not n times one."""
    plan = without_training(noise_multiplier=3.0, smallest_cohort=1)
    with tff_runtime():
        process = build_learning_process(plan, small_mlp(), data)
        first = process.initialize()
        state = process.next(first, make_shards(data, USERS, plan)).state
        noise = weights_after(process, state) - weights_after(process, first)
    share = 3.0 * plan.privacy.clip_norm / plan.clients.clients_per_round
    expected = share * np.sqrt(len(USERS))
    assert np.std(noise) == pytest.approx(expected, rel=5 / np.sqrt(2 * len(noise)))


def test_two_runs_without_a_seed_draw_their_own_noise(tmp_path, data, monkeypatch):
    plan, seeds = digits_plan(noise_multiplier=3.0), []

    def build(plan, model, data, *, noise_seed):
        seeds.append(tuple(noise_seed.tolist()))
        raise RuntimeError("planned")

    monkeypatch.setattr(simulation, "build_learning_process", build)
    for name in ("a", "b", "b"):
        with pytest.raises(RuntimeError, match="planned"):
            simulation.simulate(plan, tmp_path / name, model=small_mlp(), data=data)
    assert len(set(seeds[0] + seeds[1])) == 4  # two times 128 bits
    assert seeds[1] == seeds[2]  # a resumed run repeats its release


def test_a_round_that_releases_nothing_leaves_the_servers_optimizer_alone(data):
    plan = with_server(digits_plan(), optimizer="momentum", learning_rate=0.5)
    with tff_runtime():
        process = build_learning_process(plan, small_mlp(), data)
        state = process.next(process.initialize(), make_shards(data, USERS, plan)).state
        after = process.next(state, make_shards(data, USERS[:1], plan)).state
    kept, left = tf.nest.flatten(state.finalizer), tf.nest.flatten(after.finalizer)
    assert max(float(np.max(np.abs(np.asarray(v)))) for v in kept) > 0
    for before, now in zip(kept, left):
        np.testing.assert_array_equal(before, now)


def test_a_checkpoint_holds_the_whole_state(tmp_path, data):
    plan = with_server(digits_plan(noise_multiplier=1.0), optimizer="adam", learning_rate=0.5)
    with tff_runtime():
        process = build_learning_process(plan, small_mlp(), data)
        first = process.initialize()
        state = process.next(first, make_shards(data, USERS, plan)).state
    save_checkpoint(tmp_path, state, round_number=1)
    number, loaded = load_newest_checkpoint(tmp_path, first)
    assert number == 1
    tf.nest.assert_same_structure(loaded, state)
    changed = 0
    for kept, was, initial in zip(*map(tf.nest.flatten, (loaded, state, first))):
        np.testing.assert_array_equal(kept, was)
        changed += not np.array_equal(was, initial)
    # Four weights, two moments of each, Adam's steps and the round number.
    assert changed >= 4 + 8 + 1


def test_no_user_gives_more_examples_than_the_plan_allows():
    """10 examples fill two and a half batches of 4: the padding has room for two more."""
    plan = digits_plan()
    data = FederatedData(
        inputs={"x": np.ones((36, 8, 8, 1), np.float32)},
        target=np.zeros(36, np.int32),
        offsets=np.array([0, 12, 22, 36]),
        feature_scale=1.0,
        classes=10,
        test={"x": np.zeros((0, 8, 8, 1), np.float32), "y": np.zeros(0, np.int32)},
        client_names=("a", "b", "c"),
    )
    shards = make_shards(data, np.arange(3), plan)
    assert np.concatenate([shard["count"] for shard in shards]).tolist() == [10, 10, 10]
