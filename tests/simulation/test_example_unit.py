"""Plans with unit "example" in the simulation: DP-SGD in every step, noise, charges."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf
from plans import digits_plan, small_mlp, with_server

from tf_dpfl.data.federated import load_federated_data
from tf_dpfl.privacy.accounting import central_epsilon
from tf_dpfl.privacy.mechanism import ExampleGaussianEpochs
from tf_dpfl.simulation.process import build_learning_process
from tf_dpfl.simulation.runtime import tff_runtime
from tf_dpfl.simulation.shard import make_shards
from tf_dpfl.simulation.simulate import simulate

USERS = np.array([3, 5, 8, 13, 21], np.int64)
STEPS = 2 * 3  # epochs times batches of 4 of 10 examples
SEED = np.array([4, 2], np.int64)


def example_plan(**privacy):
    return digits_plan(unit="example", **privacy)


@pytest.fixture(scope="module")
def data():
    return load_federated_data(example_plan())


@pytest.fixture(scope="module", autouse=True)
def runtime():
    with tff_runtime():
        yield


def start(model):
    return np.concatenate([v.numpy().ravel() for v in model.trainable_variables])


def one_round(plan, model, data, users=USERS, rounds=1, change=lambda shards: None):
    """What `rounds` rounds add to the weights, and the last one's metrics."""
    process = build_learning_process(plan, model, data, noise_seed=SEED)
    state = process.initialize()
    for _ in range(rounds):
        shards = make_shards(data, users, plan)
        change(shards)
        output = process.next(state, shards)
        state = output.state
    weights = process.get_model_weights(state).trainable
    moved = np.concatenate([np.asarray(w).ravel() for w in weights]) - start(model)
    return moved.astype(np.float64), output.metrics


def trained_update(plan, model, x, y):
    """One user's DP-SGD without noise, one example at a time under Keras' own gradients."""
    local = tf.keras.models.clone_model(model)
    local.set_weights(model.get_weights())
    loss = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    settings, clip_norm = plan.local_training, plan.privacy.clip_norm
    for _ in range(settings.epochs):
        for begin in range(0, len(y), settings.batch_size):
            totals = [np.zeros(v.shape) for v in local.trainable_variables]
            for i in range(begin, min(begin + settings.batch_size, len(y))):
                with tf.GradientTape() as tape:
                    value = loss(y[i : i + 1], local(x[i : i + 1]))
                gradients = [g.numpy() for g in tape.gradient(value, local.trainable_variables)]
                norm = math.sqrt(sum(float(np.sum(np.square(g))) for g in gradients))
                for total, gradient in zip(totals, gradients):
                    total += gradient * min(1.0, clip_norm / norm)
            for variable, total in zip(local.trainable_variables, totals):
                variable.assign_sub(settings.learning_rate / settings.batch_size * total)
    return start(local) - start(model)


@pytest.mark.parametrize("clip_norm", [0.05, 0.5])
def test_a_round_without_noise_is_the_readable_loops(data, clip_norm):
    plan, model = example_plan(clip_norm=clip_norm), small_mlp()
    total = sum(trained_update(plan, model, *data.client(int(u)).values()) for u in USERS)
    moved, metrics = one_round(plan, model, data)
    np.testing.assert_allclose(moved, total / plan.clients.clients_per_round, atol=1e-6)
    assert np.linalg.norm(moved) > 1e-3
    assert metrics["reports"] == len(USERS) and metrics["released"]


def test_the_report_is_not_clipped_again(data):
    """The sum of many steps may be longer than the clip norm of one example."""
    plan, model = example_plan(clip_norm=0.05, smallest_cohort=1), small_mlp()
    plan = replace(plan, local_training=replace(plan.local_training, learning_rate=10.0))
    moved, _ = one_round(plan, model, data, USERS[:1])
    assert np.linalg.norm(moved) * plan.clients.clients_per_round > 0.1


def noise_of(data, users, *, rounds=1, z=1e3):
    """The noise alone: what is left of rounds whose gradients count for next to nothing."""
    plan = example_plan(noise_multiplier=z, clip_norm=1e-3, smallest_cohort=1)
    moved, _ = one_round(plan, small_mlp(), data, users, rounds)
    settings = plan.local_training
    of_step = z * 1e-3 * settings.learning_rate / settings.batch_size
    return moved * plan.clients.clients_per_round / of_step


def test_every_step_and_every_user_draw_noise_of_their_own(data):
    """In units of one step's: sqrt(6) for six steps, not 6; sqrt(30) for five users."""
    for users in (1, 5):
        noise = noise_of(data, USERS[:users])
        expected = math.sqrt(STEPS * users)
        assert np.std(noise) == pytest.approx(expected, rel=5 / math.sqrt(2 * noise.size))


def test_noise_of_users_and_of_rounds_is_independent(data):
    one, other = noise_of(data, USERS[:1]), noise_of(data, USERS[1:2])
    bound = 5 / math.sqrt(one.size)
    assert abs(np.corrcoef(one, other)[0, 1]) < bound
    second = noise_of(data, USERS[:1], rounds=2) - one
    assert np.std(second) == pytest.approx(math.sqrt(STEPS), rel=5 / math.sqrt(2 * one.size))
    assert abs(np.corrcoef(one, second)[0, 1]) < bound
    np.testing.assert_allclose(one, noise_of(data, USERS[:1]), atol=0.05)  # of the seed


def test_the_noise_does_not_depend_on_the_smallest_cohort(data):
    plans = [example_plan(noise_multiplier=2.0, smallest_cohort=n) for n in (1, 5)]
    model = small_mlp()
    np.testing.assert_array_equal(*(one_round(plan, model, data)[0] for plan in plans))


def test_a_broken_example_contributes_nothing_and_the_others_as_ever(data):
    plan, model = example_plan(smallest_cohort=1), small_mlp()
    data = replace(data, inputs={"x": np.float32(data.inputs["x"]) / np.float32(16)})

    def break_the_second(shards):
        shards[0]["x"][1] = np.nan

    moved, metrics = one_round(plan, model, data, USERS[:1], change=break_the_second)
    assert metrics["nonfinite"] == 0 and np.isfinite(moved).all()
    assert np.linalg.norm(moved) > 1e-3
    whole, _ = one_round(plan, model, data, USERS[:1])
    assert np.linalg.norm(moved - whole) > 1e-5


def test_a_client_that_diverges_counts_as_zero_and_is_counted(data):
    plan = example_plan(smallest_cohort=1, clip_norm=1e11, noise_multiplier=9e5)
    plan = replace(plan, local_training=replace(plan.local_training, learning_rate=1e11))
    moved, metrics = one_round(plan, small_mlp(), data, USERS[:1])
    assert metrics["nonfinite"] == 1 and metrics["released"]
    assert not moved.any()


def test_a_client_without_examples_reports_zero(data):
    plan = example_plan(smallest_cohort=1, noise_multiplier=1.0)

    def empty(shards):
        shards[0]["count"][0] = 0

    moved, metrics = one_round(plan, small_mlp(), data, USERS[:1], change=empty)
    assert metrics["reports"] == 1 and not moved.any()


def test_a_run_is_charged_with_its_epochs_and_says_what_an_example_gets(tmp_path, data):
    plan = with_server(example_plan(noise_multiplier=4.0), rounds=3)
    result = simulate(plan, tmp_path / "run", data=data)
    lines = (tmp_path / "run" / "ledger.jsonl").read_text().splitlines()
    one = ExampleGaussianEpochs(4.0, "fixed", 0.2, 1, 2)
    assert [json.loads(line)["charged"] for line in lines] == [one.to_json()] * 3
    expected = central_epsilon([one.with_rounds(3)], delta=plan.privacy.delta)
    assert result.card.central_epsilon == expected
    metrics = [json.loads(s) for s in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert metrics[-1]["central_epsilon"] == expected
    card = json.loads((tmp_path / "run" / "privacy.json").read_text())
    assert card["unit"] == "example" and card["central"]["epsilon"] == expected
    assert card["spending"] == [one.with_rounds(3).to_json()]
