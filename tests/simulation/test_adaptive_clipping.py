"""A round's clip norm, its noise and its count, beside a readable loop and tensorflow-privacy."""

import math
from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_privacy as tfp
from adapting import SEED, STILL, adaptive_plan, rounds_of, updates_of
from hypothesis import given, settings
from hypothesis import strategies as st
from plans import digits_plan, small_mlp
from process_rounds import USERS, start

from tf_dpfl.client_work.computation import ClientComputation
from tf_dpfl.data.federated import load_federated_data
from tf_dpfl.protocol import clip_norms as servers
from tf_dpfl.protocol.clipping import clip_by_global_norm
from tf_dpfl.protocol.plan import plan_from_dict, plan_to_dict
from tf_dpfl.simulation.adaptive_clipping import (
    first_clip_norm,
    next_clip_norm,
    noise_of_count,
)
from tf_dpfl.simulation.noise import CLIP_COUNT, SERVER, derive_seed, seeded_gaussian_noise
from tf_dpfl.simulation.process import build_learning_process
from tf_dpfl.simulation.runtime import tff_runtime
from tf_dpfl.simulation.shard import choose_training, make_shards


@pytest.fixture(scope="module")
def data():
    return load_federated_data(digits_plan())


def test_without_noise_it_is_tensorflow_privacys_clip_norm(data):
    model = small_mlp()
    plan = adaptive_plan(learning_rate=STILL, clip_norm=0.05, target_quantile=0.6)
    ours, _ = rounds_of(plan, model, data, 10)
    query = tfp.QuantileAdaptiveClipSumQuery(
        initial_l2_norm_clip=0.05,
        noise_multiplier=0.0,
        target_unclipped_quantile=0.6,
        learning_rate=0.2,
        clipped_count_stddev=0.0,
        expected_num_records=8,
    )
    records = [tf.constant(u) for u in updates_of(plan, model, data, USERS)]
    state, theirs = query.initial_global_state(), []
    for _ in range(11):
        theirs.append(float(query.derive_metrics(state)["clip"]))
        params = query.derive_sample_params(state)
        sample = query.initial_sample_state(records[0])
        for record in records:
            sample = query.accumulate_record(params, sample, record)
        _, state, _ = query.get_noised_result(sample, state)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)


@pytest.mark.parametrize("place", ["device", "server"])
def test_rounds_are_those_of_a_readable_loop_with_the_same_noise(data, place):
    """Sum, count, clip norm and model of three rounds, in float64."""
    model = small_mlp()
    plan = adaptive_plan(
        noise=place,
        clip_norm=0.3,
        noise_multiplier=1.5,
        clip_count_stddev=1.25,
        clip_learning_rate=0.7,
        target_quantile=0.3,
    )
    clip_norms, weights = rounds_of(plan, model, data, 3)
    of_updates = (1.5**-2 - 2.5**-2) ** -0.5
    share = 0.5 if place == "device" else 1.0  # the smallest cohort is 4
    local = tf.keras.models.clone_model(model)
    clip_norm, at = 0.3, start(model)
    for number in range(3):
        assert clip_norms[number] == pytest.approx(clip_norm, rel=1e-4)
        position = 0
        for variable in local.trainable_variables:
            size = int(np.prod(variable.shape))
            variable.assign(at[position : position + size].reshape(variable.shape))
            position += size
        updates = updates_of(plan, local, data, USERS)
        total = sum(clip_by_global_norm(u, clip_norm=clip_norm).astype(np.float64) for u in updates)
        count = sum(0.5 if np.linalg.norm(u) <= clip_norm else -0.5 for u in updates)
        round_seed = derive_seed(tf.constant(SEED), tf.constant(number, tf.int64))
        for owner in USERS if place == "device" else [SERVER]:
            seed = derive_seed(round_seed, tf.constant(owner, tf.int64))
            draw = seeded_gaussian_noise(seed, size=at.size, stddev=1.0).numpy()
            total += draw * (of_updates * share * clip_norm)
            own = derive_seed(seed, tf.constant(CLIP_COUNT, tf.int64))
            count += float(seeded_gaussian_noise(own, size=1, stddev=1.25 * share)[0])
        at = (at + total / 8).astype(np.float32)
        np.testing.assert_allclose(weights[number + 1], at, atol=1e-4)
        clip_norm *= math.exp(-0.7 * (count / 8 + 0.5 - 0.3))
    assert clip_norms[3] == pytest.approx(clip_norm, rel=1e-4)
    assert max(clip_norms) / min(clip_norms) > 1.1


@pytest.mark.parametrize("place", ["device", "server"])
def test_noise_on_the_sum_follows_the_clip_norm_and_leaves_room_for_the_count(data, place):
    plan = adaptive_plan(
        noise=place,
        clip_norm=1e-3,
        noise_multiplier=150.0,
        clip_count_stddev=100.0,
        clip_learning_rate=0.05,
    )
    clip_norms, weights = rounds_of(plan, small_mlp(), data, 4)
    expected = (150.0**-2 - 200.0**-2) ** -0.5 / 8
    if place == "device":
        expected *= math.sqrt(len(USERS) / plan.privacy.smallest_cohort)
    assert max(clip_norms) / min(clip_norms) > 1.3
    for number in range(4):
        noise = np.std(weights[number + 1] - weights[number]) / clip_norms[number]
        assert noise == pytest.approx(expected, rel=5 / math.sqrt(2 * weights[0].size))


def test_noise_on_the_count_is_independent_of_that_on_the_update():
    @tf.function(autograph=False)
    def draws(users):
        seeds = tf.map_fn(lambda user: derive_seed(tf.constant(SEED), user), users)
        of_count = tf.map_fn(
            lambda seed: noise_of_count(seed, stddev=3.0), seeds, fn_output_signature=tf.float32
        )
        of_update = tf.map_fn(
            lambda seed: seeded_gaussian_noise(seed, size=4, stddev=1.0),
            seeds,
            fn_output_signature=tf.float32,
        )
        return of_count, of_update

    of_count, of_update = (x.numpy() for x in draws(tf.range(4000, dtype=tf.int64)))
    assert np.std(of_count) == pytest.approx(3.0, rel=5 / math.sqrt(2 * 4000))
    for column in of_update.T:
        assert abs(np.corrcoef(of_count, column)[0, 1]) < 5 / math.sqrt(4000)


# Adam is not for blocks of users: they are trained one after the other.
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("clip_norm", [1e6, 1e-9])
def test_who_counts_as_clipped(data, optimizer, clip_norm):
    """A broken user always does, one without examples never; what fills a block up is nobody."""
    users = USERS[:5]
    plan = adaptive_plan(clip_norm=clip_norm, local={"optimizer": optimizer}, learning_rate=STILL)
    x = data.inputs["x"].astype(np.float32) / data.feature_scale
    floats = replace(data, inputs={"x": x})
    assert (data.offsets[users[1]], data.counts[users[1]]) == (50, 10)
    first, last = int(data.offsets[users[3]]), int(data.offsets[users[3] + 1])
    rows = np.delete(np.arange(len(x)), np.arange(first, last))  # the fourth has none
    offsets = np.where(data.offsets > first, data.offsets - (last - first), data.offsets)
    offsets = np.where(np.arange(len(offsets)) == users[3], first, offsets)
    floats = replace(floats, inputs={"x": x[rows]}, target=data.target[rows], offsets=offsets)
    assert floats.counts[users].tolist() == [10, 10, 10, 0, 10]
    shards = make_shards(floats, users, plan)
    shards[0]["x"][:10] = np.nan
    training = choose_training(ClientComputation(small_mlp(), plan.local_training), plan)
    assert (training.dense_net is None) == (optimizer == "adam")
    clip_norms, _ = rounds_of(plan, small_mlp(), floats, 1, shards=shards)
    unclipped = 4 if clip_norm > 1 else 1
    fraction = (unclipped - 5 / 2) / 8 + 0.5
    expected = clip_norms[0] * math.exp(-0.2 * (fraction - 0.5))
    assert clip_norms[1] == pytest.approx(max(expected, 1e-9), rel=1e-5)


def test_how_users_are_cut_into_shards_changes_no_clip_norm(data):
    plan, model = adaptive_plan(noise_multiplier=0.5, clip_norm=0.4), small_mlp()
    sharded, _ = rounds_of(plan, model, data, 1)
    singles = [shard for user in USERS for shard in make_shards(data, np.array([user]), plan)]
    alone, _ = rounds_of(plan, model, data, 1, shards=singles)
    assert alone == pytest.approx(sharded, rel=1e-6)


def test_a_round_that_releases_nothing_leaves_the_clip_norm(data):
    plan = adaptive_plan(noise_multiplier=0.5)
    clip_norms, weights = rounds_of(plan, small_mlp(), data, 1, users=USERS[:3])
    assert clip_norms[0] == clip_norms[1]
    np.testing.assert_array_equal(weights[0], weights[1])


@pytest.mark.parametrize("unclipped", [-3e38, -1e5, 0.0, 1e5, 3e38])
@pytest.mark.parametrize("clip_norm", [1e-9, 1.0, 9.99e11])
def test_the_clip_norm_stays_one_that_a_plan_may_name(unclipped, clip_norm):
    plan = adaptive_plan(clip_learning_rate=900.0)
    found = float(
        next_clip_norm(
            plan,
            tf.constant(clip_norm, tf.float32),
            unclipped=tf.constant(unclipped, tf.float32),
            released=tf.constant(True),
        )
    )
    tree = plan_to_dict(plan)
    tree["privacy"]["clip_norm"] = found
    assert plan_from_dict(tree).privacy.clip_norm == found


def test_a_fixed_clip_norm_is_no_part_of_the_state(data):
    """Checkpoints of plans without adaptive clipping are what they always were."""
    process = build_learning_process(digits_plan(), small_mlp(), data)
    with tff_runtime():
        state = process.initialize()
    assert tf.nest.flatten(state.aggregator["clip_norm"]) == []


@given(
    clip_norm=st.floats(servers.SMALLEST, servers.LARGEST, width=32),
    unclipped=st.floats(-1e6, 1e6, width=32),
    rate=st.floats(1e-3, 900.0),
    released=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_the_servers_rule_is_the_simulations(clip_norm, unclipped, rate, released):
    plan = adaptive_plan(clip_learning_rate=rate, target_quantile=0.3, clip_norm=clip_norm)
    assert float(first_clip_norm(plan)) == servers.first_clip_norm(plan)
    simulated = next_clip_norm(
        plan,
        tf.constant(clip_norm, tf.float32),
        unclipped=tf.constant(unclipped, tf.float32),
        released=tf.constant(released),
    )
    served = servers.next_clip_norm(plan, clip_norm, unclipped=unclipped)
    # float32 moves the exponent by its rounding.
    exponent = abs(servers.exponent(plan, unclipped))
    tolerance = 1e-6 * max(1.0, min(exponent, 100.0))
    assert float(simulated) == pytest.approx(served if released else clip_norm, rel=tolerance)
