"""The noise of the TFF process: how much, whose, and that nothing is released with too little."""

import math

import numpy as np
import pytest
from plans import digits_plan, small_mlp
from process_rounds import USERS, one_round, start

from tf_dpfl.data.federated import load_federated_data
from tf_dpfl.simulation.runtime import tff_runtime


@pytest.fixture(scope="module")
def data():
    return load_federated_data(digits_plan())


@pytest.fixture(scope="module", autouse=True)
def runtime():
    with tff_runtime():
        yield


@pytest.mark.parametrize("place", ["device", "server"])
def test_noise_has_the_deviation_the_plan_promises(data, place):
    model = small_mlp()
    plan = digits_plan(noise=place, noise_multiplier=3.0)
    quiet, _ = one_round(digits_plan(noise=place), model, data)
    noisy, _ = one_round(plan, model, data)
    privacy = plan.privacy
    variance = (3.0 * privacy.clip_norm) ** 2
    if place == "device":  # one share from each report
        variance *= len(USERS) / privacy.smallest_cohort
    expected = math.sqrt(variance) / plan.clients.clients_per_round
    # The relative deviation of an estimate from d values is 1 / sqrt(2 d).
    assert np.std(noisy - quiet) == pytest.approx(expected, rel=5 / math.sqrt(2 * quiet.size))


def test_sum_carries_the_full_noise_at_the_smallest_cohort(data):
    model, users = small_mlp(), USERS[:4]
    quiet, _ = one_round(digits_plan(), model, data, users)
    noisy, metrics = one_round(digits_plan(noise_multiplier=3.0), model, data, users)
    assert metrics["released"]
    of_sum = np.std(noisy - quiet) * digits_plan().clients.clients_per_round
    assert of_sum >= 3.0 * 0.5 * (1 - 5 / math.sqrt(2 * quiet.size))


def test_users_rounds_and_runs_draw_their_own_noise(data):
    model = small_mlp()
    plan = digits_plan(noise_multiplier=3.0, smallest_cohort=1, clip_norm=1e-3)
    first, _ = one_round(plan, model, data, USERS[:1])
    assert not np.allclose(first, one_round(plan, model, data, USERS[:1])[0])  # another run
    seed = np.array([1, 2], np.int64)
    one, _ = one_round(plan, model, data, USERS[:1], noise_seed=seed)
    np.testing.assert_array_equal(one, one_round(plan, model, data, USERS[:1], noise_seed=seed)[0])
    other_user, _ = one_round(plan, model, data, USERS[1:2], noise_seed=seed)
    assert abs(np.corrcoef(one - start(model), other_user - start(model))[0, 1]) < 0.2
    two_rounds, _ = one_round(plan, model, data, USERS[:1], rounds=2, noise_seed=seed)
    second_round = two_rounds - one
    assert abs(np.corrcoef(one - start(model), second_round)[0, 1]) < 0.2


@pytest.mark.parametrize("users", [USERS[:0], USERS[:1], USERS[:3]])
def test_too_small_a_round_releases_nothing(data, users):
    plan, model = digits_plan(noise_multiplier=1.0), small_mlp()
    weights, metrics = one_round(plan, model, data, users)
    np.testing.assert_array_equal(weights, start(model))
    assert metrics["reports"] == len(users) and not metrics["released"]
