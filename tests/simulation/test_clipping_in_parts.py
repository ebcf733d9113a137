"""Updates clipped layer by layer or entry by entry: the round, its noise, broken users."""

import math
from dataclasses import replace

import numpy as np
import pytest
from plans import digits_plan, small_mlp
from process_rounds import USERS, clipped_update, flat, start

from tf_dpfl.client_work.computation import ClientComputation, layout_of
from tf_dpfl.data.federated import load_federated_data
from tf_dpfl.protocol.clipping import clip_update
from tf_dpfl.simulation.process import build_learning_process
from tf_dpfl.simulation.runtime import tff_runtime
from tf_dpfl.simulation.shard import choose_training, make_shards

WAYS = ["per_layer", "value"]


@pytest.fixture(scope="module")
def data():
    return load_federated_data(digits_plan())


@pytest.fixture(scope="module", autouse=True)
def runtime():
    with tff_runtime():
        yield


def moved(plan, model, data, shards=None):
    process = build_learning_process(plan, model, data, noise_seed=np.array([5, 6]))
    shards = make_shards(data, USERS, plan) if shards is None else shards
    output = process.next(process.initialize(), shards)
    return flat(process.get_model_weights(output.state)) - start(model), output.metrics


@pytest.mark.parametrize("clipping", WAYS)
def test_a_round_is_the_readable_loops(data, clipping):
    model, plan = small_mlp(), digits_plan(clipping=clipping, clip_norm=0.3)
    whole = replace(plan, privacy=replace(plan.privacy, clip_norm=1e9))
    updates = [clipped_update(whole, model, *data.client(int(u)).values()) for u in USERS]
    layout = layout_of(model)
    clipped = [clip_update(u, clip_norm=0.3, clipping=clipping, layout=layout) for u in updates]
    globally = [clip_update(u, clip_norm=0.3, clipping="global", layout=layout) for u in updates]
    assert np.abs(sum(clipped) - sum(globally)).max() > 1e-2  # the ways differ here
    found, _ = moved(plan, model, data)
    np.testing.assert_allclose(found, sum(clipped) / 8, atol=1e-5)


@pytest.mark.parametrize("clipping", WAYS)
def test_one_user_moves_the_model_by_the_clip_norm_at_most(data, clipping):
    model = small_mlp()
    plan = digits_plan(clipping=clipping, clip_norm=1e-3, smallest_cohort=1)
    found, _ = moved(plan, model, data, make_shards(data, USERS[:1], plan))
    assert 0.2e-3 < 8 * np.linalg.norm(found.astype(np.float64)) <= 1.01e-3  # rounding of weights


@pytest.mark.parametrize("clipping", WAYS)
def test_noise_is_that_of_the_whole_clip_norm(data, clipping):
    model = small_mlp()
    quiet, _ = moved(digits_plan(clipping=clipping), model, data)
    noisy, _ = moved(digits_plan(clipping=clipping, noise_multiplier=3.0), model, data)
    expected = 3.0 * 0.5 * math.sqrt(len(USERS) / 4) / 8
    assert np.std(noisy - quiet) == pytest.approx(expected, rel=5 / math.sqrt(2 * quiet.size))


@pytest.mark.parametrize("clipping", WAYS)
def test_a_broken_user_counts_as_zero(data, clipping):
    model, plan = small_mlp(), digits_plan(clipping=clipping)
    x = data.inputs["x"].astype(np.float32) / data.feature_scale
    floats = replace(data, inputs={"x": x})
    shards = make_shards(floats, USERS, plan)
    shards[0]["x"][:10] = np.nan
    found, metrics = moved(plan, model, floats, shards)
    assert metrics["nonfinite"] == 1
    without, _ = moved(plan, model, floats, make_shards(floats, USERS[1:], plan))
    np.testing.assert_allclose(found, without, atol=1e-6)


@pytest.mark.parametrize("clipping", WAYS)
def test_users_are_trained_one_by_one_and_it_is_said_why(clipping):
    plan = digits_plan(clipping=clipping)
    training = choose_training(ClientComputation(small_mlp(), plan.local_training), plan)
    assert training.dense_net is None and clipping in training.reason
