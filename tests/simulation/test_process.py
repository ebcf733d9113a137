"""The TFF process held to a readable loop; clipping, shards and what it refuses."""

from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_federated as tff
from plans import digits_plan, small_mlp, with_server
from process_rounds import USERS, clipped_update, flat, one_round, start

from tf_dpfl.data.federated import load_federated_data
from tf_dpfl.protocol.errors import ModelError, PlanError
from tf_dpfl.simulation.process import _starts_at_zero, build_learning_process
from tf_dpfl.simulation.runtime import tff_runtime
from tf_dpfl.simulation.shard import make_shards


@pytest.fixture(scope="module")
def data():
    return load_federated_data(digits_plan())


@pytest.fixture(scope="module", autouse=True)
def runtime():
    with tff_runtime():
        yield


def test_is_a_tff_learning_process_that_gives_and_takes_weights(data):
    plan, model = digits_plan(), small_mlp()
    process = build_learning_process(plan, model, data)
    assert isinstance(process, tff.learning.templates.LearningProcess)
    state = process.initialize()
    weights = process.get_model_weights(state)
    np.testing.assert_array_equal(flat(weights), start(model))
    doubled = tff.learning.models.ModelWeights(
        [2 * np.asarray(w) for w in weights.trainable], list(weights.non_trainable)
    )
    state = process.set_model_weights(state, doubled)
    np.testing.assert_array_equal(flat(process.get_model_weights(state)), 2 * start(model))


def test_round_without_noise_is_the_readable_loops(data):
    plan, model = digits_plan(), small_mlp()
    total = sum(clipped_update(plan, model, *data.client(int(u)).values()) for u in USERS)
    expected = start(model) + total / plan.clients.clients_per_round
    weights, metrics = one_round(plan, model, data)
    np.testing.assert_allclose(weights, expected, atol=1e-5)
    assert metrics["reports"] == len(USERS) and metrics["released"]


def test_clipping_bounds_what_one_user_can_do(data):
    """Without clipping the round of one user moves the model farther than C / n."""
    plan, model = digits_plan(smallest_cohort=1, clip_norm=1e-3), small_mlp()
    weights, _ = one_round(plan, model, data, USERS[:1])
    moved = np.linalg.norm((weights - start(model)).astype(np.float64))
    bound = 1e-3 / plan.clients.clients_per_round
    assert 0.5 * bound < moved <= bound * 1.01  # float32 rounding of the weights


def test_users_weigh_equally_whatever_they_hold(data):
    """The second user has a single example."""
    plan, model = digits_plan(smallest_cohort=1), small_mlp()
    one = data.offsets[USERS[1]] + 1
    rows = np.concatenate([np.arange(one), np.arange(data.offsets[USERS[1] + 1], data.offsets[-1])])
    offsets = np.where(data.offsets > one, data.offsets - (data.counts[USERS[1]] - 1), data.offsets)
    inputs = {"x": data.inputs["x"][rows]}
    data = replace(data, inputs=inputs, target=data.target[rows], offsets=offsets)
    process = build_learning_process(plan, model, data)
    output = process.next(process.initialize(), make_shards(data, USERS[:2], plan))
    assert data.counts[USERS[:2]].tolist() == [10, 1]
    total = sum(clipped_update(plan, model, *data.client(int(u)).values()) for u in USERS[:2])
    moved = flat(process.get_model_weights(output.state)) - start(model)
    np.testing.assert_allclose(moved, total / plan.clients.clients_per_round, atol=1e-5)


def test_a_broken_client_counts_as_zero_and_is_counted(data):
    plan, model = digits_plan(), small_mlp()
    x = data.inputs["x"].astype(np.float32) / data.feature_scale
    data = replace(data, inputs={"x": x})
    shards = make_shards(data, USERS, plan)
    shards[0]["x"][:10] = np.nan
    process = build_learning_process(plan, model, data)
    output = process.next(process.initialize(), shards)
    assert output.metrics["nonfinite"] == 1
    assert np.isfinite(flat(process.get_model_weights(output.state))).all()


def test_shards_of_one_user_give_the_same_weights(data):
    plan, model = digits_plan(), small_mlp()
    sharded, _ = one_round(plan, model, data)
    process = build_learning_process(plan, model, data)
    single = [shard for user in USERS for shard in make_shards(data, np.array([user]), plan)]
    output = process.next(process.initialize(), single)
    np.testing.assert_allclose(flat(process.get_model_weights(output.state)), sharded, atol=1e-6)


def test_how_many_shards_there_are_changes_nothing_but_rounding(data):
    """Pieces as they are cut for one core, for four, and for more cores than users."""
    plan, model = digits_plan(noise_multiplier=1.0), small_mlp()
    plan = replace(plan, simulation=replace(plan.simulation, users_per_shard=None))
    results = []
    for places in (1, 4, 50):
        process = build_learning_process(plan, model, data, noise_seed=np.array([1, 2]))
        shards = make_shards(data, USERS, plan, places=places)
        assert len(shards) == min(places, plan.clients.clients_per_round)
        assert np.concatenate([shard["user_id"] for shard in shards]).tolist() == USERS.tolist()
        output = process.next(process.initialize(), shards)
        assert output.metrics["reports"] == len(USERS)
        results.append(flat(process.get_model_weights(output.state)))
    for other in results[1:]:
        np.testing.assert_allclose(other, results[0], atol=1e-5)


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam"])
def test_server_optimizer_is_kerass(data, optimizer):
    plan = with_server(digits_plan(), optimizer=optimizer, learning_rate=0.5)
    model = small_mlp()
    weights, _ = one_round(plan, model, data, rounds=3)
    reference = tf.keras.models.clone_model(model)
    reference.set_weights(model.get_weights())
    keras = {
        "sgd": lambda: tf.keras.optimizers.legacy.SGD(0.5),
        "momentum": lambda: tf.keras.optimizers.legacy.SGD(0.5, momentum=0.9),
        "adam": lambda: tf.keras.optimizers.legacy.Adam(0.5),
    }[optimizer]()
    for _ in range(3):
        total = sum(clipped_update(plan, reference, *data.client(int(u)).values()) for u in USERS)
        average, pieces, begin = total / plan.clients.clients_per_round, [], 0
        for v in reference.trainable_variables:
            size = int(np.prod(v.shape))
            pieces.append((-average[begin : begin + size].reshape(v.shape), v))
            begin += size
        keras.apply_gradients(pieces)
    # Adam divides by the root of the average: tiny entries lose digits.
    np.testing.assert_allclose(
        weights, start(reference), atol=2e-3 if optimizer == "adam" else 2e-5
    )


def test_a_user_named_twice_is_refused(data):
    with pytest.raises(ValueError, match="twice"):
        make_shards(data, np.array([1, 1]), digits_plan())


def test_clones_draw_no_initial_weights_that_nobody_reads():
    model = small_mlp()
    with tf.Graph().as_default() as graph, tf.variable_creator_scope(_starts_at_zero):
        twin = tf.keras.models.clone_model(model)
        shapes = [variable.shape for variable in twin.variables]
    assert shapes == [variable.shape for variable in model.variables]
    assert not [op.name for op in graph.get_operations() if "Random" in op.type]
    tf.keras.models.clone_model(model)  # Keras' classes as they were, see `process`


def test_batch_normalization_is_refused_by_name(data):
    model = small_mlp()
    model = tf.keras.Sequential([*model.layers, tf.keras.layers.BatchNormalization(name="mixer")])
    model.build((None, 8, 8, 1))
    with pytest.raises(ModelError, match="mixer"):
        build_learning_process(digits_plan(), model, data)


def test_a_plan_without_noise_multiplier_must_be_calibrated_first(data):
    plan = digits_plan()
    tree = plan.privacy.__class__(clip_norm=0.5, delta=1e-3, smallest_cohort=4, target_epsilon=2.0)
    plan = plan.__class__(
        plan.task, plan.data, plan.clients, plan.local_training, tree, plan.server
    )
    with pytest.raises(PlanError, match="calibrate_plan"):
        build_learning_process(plan, small_mlp(), data)
