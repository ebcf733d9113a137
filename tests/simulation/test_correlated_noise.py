"""Correlated server noise: its covariance over rounds, its seeds, its way through TFF."""

import math

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_federated as tff
from kills import simulate_until_killed
from plans import correlated_plan, digits_plan, small_mlp, with_server

from tf_dpfl.data.federated import load_federated_data
from tf_dpfl.privacy.accounting import central_epsilon
from tf_dpfl.privacy.mechanism import mechanism_of_plan
from tf_dpfl.protocol.errors import PlanError
from tf_dpfl.protocol.plan_files import load_plan
from tf_dpfl.simulation.noise import derive_seed
from tf_dpfl.simulation.process import build_learning_process
from tf_dpfl.simulation.runtime import tff_runtime
from tf_dpfl.simulation.server_noise import server_noise
from tf_dpfl.simulation.shard import make_shards
from tf_dpfl.simulation.simulate import simulate

SEED = np.array([5, 6], np.int64)
ROUNDS = 12


def noise_of_rounds(plan, *, size, rounds=ROUNDS, seed=SEED):
    """The noise of every round, float64 [rounds, size], from the pair of functions."""
    noise = server_noise(plan, size=size)
    memory, rows = noise.begin(seed), []
    add = tf.function(noise.add, autograph=False)
    for number in range(rounds):
        round_seed = derive_seed(tf.constant(seed), tf.constant(number, tf.int64))
        noised, memory = add(tf.zeros([size]), round_seed, memory)
        rows.append(noised.numpy().astype(np.float64))
    return np.stack(rows)


def lower_toeplitz(column, rounds):
    matrix = np.zeros((rounds, rounds))
    for offset, value in enumerate(column[:rounds]):
        matrix += np.diag(np.full(rounds - offset, value), -offset)
    return matrix


def square_root_coefficients(count):
    """(2 i over i) / 4^i, from factorials."""
    return [math.comb(2 * i, i) / 4**i for i in range(count)]


def expected_covariance(mechanism, rounds, bands=None):
    """Of one weight's noise over rounds, in squares of the independent draws' deviation."""
    if mechanism == "gaussian":
        return np.eye(rounds)
    if mechanism == "banded":
        factor = lower_toeplitz(square_root_coefficients(bands), rounds)
        inverse = np.linalg.inv(factor)
        return inverse @ inverse.T
    # Prefix t is a sum of complete trees; each is estimated from all of its nodes, whose
    # own noise is independent: 2^-j of a node j levels below the root, with weight w.
    nodes, rows = {}, []
    for t in range(1, rounds + 1):
        row, start = {}, 0
        for level in reversed(range(t.bit_length())):
            if not t >> level & 1:
                continue
            for below in range(level + 1):
                length = 1 << (level - below)
                for node in range(start // length, (start + (1 << level)) // length):
                    weight = 0.5**below / (2 - 0.5**level)
                    row[nodes.setdefault((level - below, node), len(nodes))] = weight
            start += 1 << level
        rows.append(row)
    prefixes = np.zeros((rounds, len(nodes)))
    for t, row in enumerate(rows):
        for node, weight in row.items():
            prefixes[t, node] = weight
    residuals = np.diff(prefixes, axis=0, prepend=0)
    return residuals @ residuals.T


@pytest.mark.parametrize(
    ("mechanism", "bands"), [("gaussian", None), ("banded", 1), ("banded", 5), ("tree", None)]
)
def test_noise_has_the_covariance_of_the_mechanism_over_rounds(mechanism, bands):
    size = 40_000
    plan = correlated_plan(mechanism, bands=bands)
    noise = noise_of_rounds(plan, size=size) / (2.0 * plan.privacy.clip_norm)
    covariance = noise @ noise.T / size
    expected = expected_covariance(mechanism, ROUNDS, bands)
    # Five deviations of an empirical covariance of `size` samples, for the largest variance.
    assert np.abs(covariance - expected).max() < 5 * math.sqrt(2 / size) * expected.max()


@pytest.mark.parametrize(("mechanism", "bands"), [("banded", 5), ("tree", None)])
def test_independent_noise_would_not_pass_for_correlated_noise(mechanism, bands):
    """The test above has the power to tell them apart."""
    expected = expected_covariance(mechanism, ROUNDS, bands)
    tolerance = 5 * math.sqrt(2 / 40_000) * expected.max()
    assert np.abs(expected - np.diag(np.diag(expected))).max() > 10 * tolerance
    assert np.abs(expected - np.eye(ROUNDS)).max() > 10 * tolerance


def test_the_sum_of_all_rounds_carries_far_less_than_independent_noise_would():
    plan, size = correlated_plan("banded", bands=5), 40_000
    total = noise_of_rounds(plan, size=size).sum(axis=0)
    factor = lower_toeplitz(square_root_coefficients(5), ROUNDS)
    of_prefix = np.ones(ROUNDS) @ np.linalg.inv(factor)
    expected = 2.0 * plan.privacy.clip_norm * np.linalg.norm(of_prefix)
    assert total.std() == pytest.approx(expected, rel=5 / math.sqrt(2 * size))
    assert expected < 0.8 * 2.0 * plan.privacy.clip_norm * math.sqrt(ROUNDS)


def test_tensorflow_privacys_own_query_draws_the_same_tree():
    """Its state is taken apart and put together again in every round."""
    import tensorflow_privacy as tfp

    plan, size = correlated_plan("tree"), 300
    noise = server_noise(plan, size=size)
    memory = noise.begin(SEED)
    query = tfp.TreeResidualSumQuery.build_l2_gaussian_query(
        clip_norm=1.0,
        noise_multiplier=2.0 * plan.privacy.clip_norm,
        record_specs=tf.TensorSpec([size]),
        noise_seed=derive_seed(tf.constant(SEED), tf.constant(-2, tf.int64)).numpy().tolist(),
    )
    state = query.initial_global_state()
    for _ in range(ROUNDS):
        expected, state, _ = query.get_noised_result(tf.zeros([size]), state)
        noised, memory = noise.add(tf.zeros([size]), tf.zeros([2], tf.int64), memory)
        np.testing.assert_array_equal(noised, expected)


@pytest.mark.parametrize("mechanism", ["banded", "tree"])
def test_runs_have_noise_of_their_own_and_seeds_repeat_it(mechanism):
    plan = correlated_plan(mechanism)
    first = noise_of_rounds(plan, size=2000)
    np.testing.assert_array_equal(first, noise_of_rounds(plan, size=2000))
    for other in ([5, 6 + 2**40], [6, 6]):  # either half of the seed
        noise = noise_of_rounds(plan, size=2000, seed=np.array(other, np.int64))
        for row in range(ROUNDS):
            assert abs(np.corrcoef(first[row], noise[row])[0, 1]) < 0.12


@pytest.mark.parametrize("mechanism", ["banded", "tree"])
def test_too_much_noise_to_remember_is_refused_with_a_way_out(mechanism):
    with pytest.raises(PlanError, match="bands"):
        server_noise(correlated_plan(mechanism), size=10**9)


@pytest.fixture(scope="module")
def data():
    return load_federated_data(digits_plan())


def flat(process, state):
    weights = process.get_model_weights(state)
    return np.concatenate([np.asarray(w).ravel() for w in weights.trainable]).astype(np.float64)


@pytest.mark.parametrize("mechanism", ["banded", "tree"])
@pytest.mark.parametrize("optimizer", ["sgd", "momentum"])
def test_the_process_adds_that_noise_and_the_optimizer_only_works_on_what_it_gives(
    data, mechanism, optimizer
):
    """Users whose updates are next to nothing: what moves the model is the noise alone."""
    plan = with_server(
        correlated_plan(mechanism, clip_norm=1e-6, noise_multiplier=1e5, smallest_cohort=1),
        optimizer=optimizer,
        momentum=0.5,
    )
    model = small_mlp()
    users = np.array([1, 4, 9], np.int64)
    with tff_runtime():
        process = build_learning_process(plan, model, data, noise_seed=SEED)
        assert isinstance(process, tff.learning.templates.LearningProcess)
        state = process.initialize()
        moved = [flat(process, state)]
        for number in range(6):
            # A round in which too few report leaves the model, and goes on with the noise.
            shards = make_shards(data, users[:0] if number == 3 else users, plan)
            output = process.next(state, shards)
            state = output.state
            assert output.metrics["released"] == (number != 3)
            moved.append(flat(process, state))
    noise = noise_of_rounds(plan, size=moved[0].size, rounds=6)
    velocity, expected = 0.0, [moved[0]]
    for number, row in enumerate(noise / plan.clients.clients_per_round):
        if number != 3:
            velocity = (0.5 * velocity if optimizer == "momentum" else 0.0) + row
        expected.append(expected[-1] + (velocity if number != 3 else 0.0))
    np.testing.assert_allclose(np.stack(moved), np.stack(expected), atol=1e-4)


@pytest.mark.parametrize("mechanism", ["banded", "tree"])
def test_a_killed_run_goes_on_with_the_noise_it_would_have_had(mechanism, tmp_path, data):
    plan = with_server(correlated_plan(mechanism, rounds=7), optimizer="momentum")
    whole = simulate(plan, tmp_path / "whole", data=data, seed=7)
    folder = tmp_path / "run"
    simulate_until_killed(plan, folder, in_round=5)
    assert load_plan(folder / "plan.toml") == plan
    resumed = simulate(plan, folder, data=data)
    for new, old in zip(resumed.model.get_weights(), whole.model.get_weights()):
        np.testing.assert_array_equal(new, old)
    ledgers = [(path / "ledger.jsonl").read_text() for path in (folder, tmp_path / "whole")]
    assert ledgers[0] == ledgers[1]
    spent = [mechanism_of_plan(plan, rounds=7)]
    expected = central_epsilon(spent, delta=plan.privacy.delta)
    assert whole.card.central_epsilon == resumed.card.central_epsilon == expected
