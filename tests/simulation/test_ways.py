"""However examples travel and users are trained, a round gives the same weights."""

from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_federated as tff
from plans import digits_plan, small_mlp

from tf_dpfl.client_work.computation import ClientComputation
from tf_dpfl.data.columns import FederatedData
from tf_dpfl.data.sharing import shared_on_this_machine
from tf_dpfl.data.store import open_store, write_store
from tf_dpfl.protocol.errors import DataError
from tf_dpfl.simulation.process import build_learning_process
from tf_dpfl.simulation.runtime import tff_runtime
from tf_dpfl.simulation.shard import choose_training, make_shards

L = tf.keras.layers
USERS = np.array([0, 2, 3, 5, 6, 7, 8], np.int64)


@pytest.fixture(scope="module", autouse=True)
def runtime():
    with tff_runtime():
        yield


def ragged_data():
    """Users of 1 to 14 examples in bytes, as many as fit no whole number of batches."""
    random = np.random.default_rng(3)
    counts = random.integers(1, 15, 10)
    counts[6] = 0
    rows = int(counts.sum())
    return FederatedData(
        inputs={"x": random.integers(0, 256, (rows, 8, 8, 1), np.uint8)},
        target=random.integers(0, 10, rows).astype(np.int32),
        offsets=np.concatenate([[0], np.cumsum(counts)]),
        feature_scale=255.0,
        classes=10,
        test={"x": np.zeros((0, 8, 8, 1), np.float32), "y": np.zeros(0, np.int32)},
        client_names=[str(i) for i in range(10)],
    )


def plan_of(records="auto", users_per_shard=3, **local_training):
    plan = digits_plan()
    return replace(
        plan,
        clients=replace(plan.clients, population=10, examples_per_client=12),
        simulation=replace(plan.simulation, users_per_shard=users_per_shard, records=records),
        local_training=replace(plan.local_training, **local_training),
    )


def small_cnn():
    return tf.keras.Sequential(
        [
            L.InputLayer([8, 8, 1]),
            L.Conv2D(4, 3, activation="tanh"),
            L.MaxPool2D(2),
            L.Flatten(),
            L.Dense(10),
        ]
    )


def weights_after(plan, model, data, shards=None):
    process = build_learning_process(plan, model, data)
    shards = make_shards(data, USERS, plan) if shards is None else shards
    output = process.next(process.initialize(), shards)
    assert output.metrics["reports"] == len(USERS)
    weights = process.get_model_weights(output.state).trainable
    return np.concatenate([np.asarray(w).ravel() for w in weights])


@pytest.mark.parametrize("build", [small_mlp, pytest.param(small_cnn, marks=pytest.mark.slow)])
def test_sent_by_id_from_memory_and_from_a_store_are_the_same(build, tmp_path):
    model, data = build(), ragged_data()
    expected = weights_after(plan_of("sent"), model, data)
    write_store(data, tmp_path / "store")
    stored = open_store(tmp_path / "store")
    shards = make_shards(stored, USERS, plan_of())
    assert all(list(shard) == ["user_id"] for shard in shards)  # nothing else travels
    np.testing.assert_array_equal(weights_after(plan_of(), model, stored), expected)
    with (
        shared_on_this_machine(data) as shared,
        tff_runtime(inherited=shared.files.descriptors),
    ):
        np.testing.assert_array_equal(weights_after(plan_of("by_id"), model, shared), expected)


@pytest.mark.parametrize(
    ("build", "optimizer"),
    [
        (small_mlp, "momentum"),
        (small_cnn, "adam"),
        *(
            pytest.param(build, optimizer, marks=pytest.mark.slow)
            for build, optimizer in [
                (small_mlp, "sgd"),
                (small_mlp, "adam"),
                (small_cnn, "sgd"),
                (small_cnn, "momentum"),
            ]
        ),
    ],
)
def test_sharded_and_one_user_a_client_are_the_same(build, optimizer):
    model, data = build(), ragged_data()
    plan = plan_of(optimizer=optimizer, epochs=2, epsilon=1e-3)
    sharded = weights_after(plan, model, data)
    singles = [shard for user in USERS for shard in make_shards(data, [user], plan)]
    np.testing.assert_allclose(weights_after(plan, model, data, singles), sharded, atol=1e-5)


def test_dense_networks_are_trained_in_blocks_and_others_are_not():
    plan, names = plan_of(), []
    for build in (small_mlp, small_cnn):
        training = choose_training(ClientComputation(build(), plan.local_training), plan)
        names.append(training.dense_net is not None)
        assert training.reason
    assert names == [True, False]


@pytest.mark.parametrize(
    ("build", "optimizer"),
    [
        (small_mlp, "momentum"),
        pytest.param(small_mlp, "sgd", marks=pytest.mark.slow),
        pytest.param(small_cnn, "sgd", marks=pytest.mark.slow),
        pytest.param(small_cnn, "momentum", marks=pytest.mark.slow),
    ],
)
def test_a_round_is_that_of_stock_tff(build, optimizer):
    """build_unweighted_fed_avg with its own clipping aggregator, from the same weights."""
    data, model = ragged_data(), build()
    plan = plan_of(optimizer=optimizer, epochs=2)
    plan = replace(plan, clients=replace(plan.clients, examples_per_client=14))
    users = np.delete(USERS, 4)  # stock TFF takes no user without examples
    plan = replace(plan, clients=replace(plan.clients, clients_per_round=len(users)))
    ours = build_learning_process(plan, model, data)
    output = ours.next(ours.initialize(), make_shards(data, users, plan))
    weights = ours.get_model_weights(output.state).trainable
    ours = np.concatenate([np.asarray(w).ravel() for w in weights])
    spec = (tf.TensorSpec([None, 8, 8, 1]), tf.TensorSpec([None], tf.int32))
    momentum = plan.local_training.momentum if optimizer == "momentum" else None
    process = tff.learning.algorithms.build_unweighted_fed_avg(
        tff.learning.models.functional_model_from_keras(
            tf.keras.models.clone_model(model),
            tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            spec,
        ),
        client_optimizer_fn=tff.learning.optimizers.build_sgdm(0.1, momentum),
        server_optimizer_fn=tff.learning.optimizers.build_sgdm(1.0),
        model_aggregator=tff.aggregators.clipping_factory(
            plan.privacy.clip_norm, tff.aggregators.UnweightedMeanFactory()
        ),
    )
    state = process.set_model_weights(
        process.initialize(),
        tff.learning.models.ModelWeights(tuple(v.numpy() for v in model.trainable_variables), ()),
    )

    def dataset(user):
        x, y = data.client(int(user)).values()
        return tf.data.Dataset.from_tensor_slices((x, y)).batch(4).repeat(2)

    state = process.next(state, [dataset(user) for user in users]).state
    stock = np.concatenate(
        [np.asarray(w).ravel() for w in process.get_model_weights(state).trainable]
    )
    np.testing.assert_allclose(ours, stock, atol=1e-5)
    start = np.concatenate([v.numpy().ravel() for v in model.trainable_variables])
    assert np.linalg.norm(stock - start) > 1e-2


def test_by_id_needs_data_that_workers_can_read():
    with pytest.raises(DataError, match="dpfl data store"):
        make_shards(ragged_data(), USERS, plan_of("by_id"))


def test_a_strangers_id_is_refused():
    for records in ("auto", "sent"):
        with pytest.raises(IndexError):
            make_shards(ragged_data(), np.array([10]), plan_of(records))


def test_another_store_under_the_same_path_is_refused_while_a_run_goes_on(tmp_path):
    data = ragged_data()
    write_store(data, tmp_path / "store")
    stored, plan = open_store(tmp_path / "store"), plan_of()
    process = build_learning_process(plan, small_mlp(), stored)
    state = process.initialize()
    process.next(state, make_shards(stored, USERS, plan))
    (tmp_path / "store").rename(tmp_path / "old")
    write_store(replace(data, description={"source": "other"}), tmp_path / "store")
    with pytest.raises(Exception, match="another store"):
        process.next(state, make_shards(stored, USERS, plan))
