"""The TFF learning process of a plan and a Keras model."""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff
from numpy.typing import NDArray

from models.shapes import require_declared_input
from models.validate import validate_model
from tf_dpfl.client_work.computation import ClientComputation, layout_of
from tf_dpfl.client_work.faster_gradients import FASTER_GRADIENTS
from tf_dpfl.client_work.interface import interface_of
from tf_dpfl.client_work.losses import require_fitting_loss
from tf_dpfl.data.columns import FederatedData
from tf_dpfl.protocol.plan import Plan, Server
from tf_dpfl.simulation.aggregation import SEED_TYPE, build_aggregation_process, gather_rows
from tf_dpfl.simulation.noise import derive_seed, seed_from_os
from tf_dpfl.simulation.records import ShardRecords
from tf_dpfl.simulation.server_noise import server_noise
from tf_dpfl.simulation.shard import choose_training, train_shard


def build_learning_process(
    plan: Plan,
    model: tf.keras.Model,
    data: FederatedData,
    *,
    noise_seed: NDArray[np.int64] | None = None,
) -> tff.learning.templates.LearningProcess:
    """Federated averaging with differential privacy for users or examples, as the plan says.

    `initialize()` starts from the model's current weights; `next(state, shards)`
    takes what `make_shards` returns and gives the new state and the metrics
    `reports`, `nonfinite` (int32) and `released` (bool). Users weigh equally and
    the sum is divided by `clients.clients_per_round`. A round with fewer than
    `privacy.smallest_cohort` reports leaves the model as it was.

    With `local_training.optimizer_state = "keep"` the process holds no user's state: each
    round takes the states of its users with the shards, and gives the new ones back as
    the metric `kept` (`user_id` int64 [n], `optimizer_state` float32 [n, s]; in no
    order, and as private as the examples).

    Args:
      plan: with a noise multiplier (see `calibrate_plan`).
      model: a Sequential or functional Keras model ending in logits; it is
        cloned, never changed.
      data: the users' examples, of dtypes and shapes that fit the model; the same
        object goes to `make_shards`. Its files, if any, are read while rounds run.
      noise_seed: int64 [2]; None takes 128 bits from the operating system. With
        a seed somebody else knows, the noise protects nobody from them.

    Returns:
      A `tff.learning.templates.LearningProcess` whose model weights are a
      `tff.learning.models.ModelWeights`.

    Raises:
      ModelError: naming every layer that differential privacy cannot take.
      DataError: the data do not fit the model, or `simulation.records`.
      PlanError: when the plan has a target epsilon but no noise multiplier yet.
    """
    require_declared_input(model)
    validate_model(model)
    seed = seed_from_os() if noise_seed is None else np.asarray(noise_seed, np.int64)
    layout = layout_of(model)
    initial = tff.learning.models.ModelWeights(
        [v.numpy() for v in model.trainable_variables],
        [v.numpy() for v in model.non_trainable_variables],
    )
    weights_type = tff.to_type(
        tff.learning.models.ModelWeights(
            [tff.TensorType(v.dtype, v.shape) for v in initial.trainable],
            [tff.TensorType(v.dtype, v.shape) for v in initial.non_trainable],
        )
    )
    interface = interface_of(model, plan.local_training)
    require_fitting_loss(plan.local_training.loss, interface)
    state_size = plan.local_training.kept_values(weights=layout.size)
    records = ShardRecords(data, plan, interface, state_size=state_size)
    shards_type = records.shard_type()
    aggregation = build_aggregation_process(plan, size=layout.size)
    server_optimizer = build_server_optimizer(plan.server)

    @tff.tensorflow.computation
    def initialize_state() -> Any:
        weights = tff.learning.models.ModelWeights(
            [tf.constant(v) for v in initial.trainable],
            [tf.constant(v) for v in initial.non_trainable],
        )
        specs = [tf.TensorSpec(v.shape, v.dtype) for v in initial.trainable]
        return tff.learning.templates.LearningAlgorithmState(
            global_model_weights=weights,
            distributor=(),
            client_work=OrderedDict(round_number=tf.constant(0, tf.int64)),
            aggregator=OrderedDict(
                noise_seed=tf.constant(seed),
                # The aggregation's own start has no seed: this begins with the run's.
                memory=server_noise(plan, size=layout.size).begin(seed),
            ),
            finalizer=server_optimizer.initialize(specs),
        )

    state_type = initialize_state.type_signature.result

    @tff.tensorflow.computation(state_type)
    def round_seed(state: Any) -> Any:
        return derive_seed(state.aggregator["noise_seed"], state.client_work["round_number"])

    @tff.tensorflow.computation(SEED_TYPE, state_type)
    def aggregation_state(seed: Any, state: Any) -> Any:
        return OrderedDict(seed=seed, memory=state.aggregator["memory"])

    with _keras_classes_restored(model):

        @tff.tensorflow.computation(weights_type, SEED_TYPE, shards_type)
        def client(weights: Any, noise_seed: Any, shard: Any) -> Any:
            with tf.variable_creator_scope(_starts_at_zero):
                local = tf.keras.models.clone_model(model, clone_function=_clone_layer)
            computation = ClientComputation(
                local, plan.local_training, op_gradients=FASTER_GRADIENTS
            )

            @tf.function(autograph=False)
            def run(weights: Any, noise_seed: tf.Tensor, shard: Any) -> Any:
                for variable, value in zip(local.non_trainable_variables, weights.non_trainable):
                    variable.assign(value)
                return train_shard(
                    choose_training(computation, plan),
                    _join(weights.trainable),
                    noise_seed,
                    records.examples(shard),
                    clip_norm=tf.constant(plan.privacy.clip_norm, tf.float32),
                )

            return run(weights, noise_seed, shard)

    @tff.tensorflow.computation(
        state_type,
        aggregation.next.type_signature.result.result.member,
        aggregation.state_type.member,
    )
    def finalize(state: Any, aggregate: Any, noise: Any) -> Any:
        old = state.global_model_weights
        average = aggregate["average"]
        gradients = [-piece for piece in _split(average, old.trainable)]
        optimizer_state, trainable = server_optimizer.next(
            state.finalizer, list(old.trainable), gradients
        )

        def if_released(new: Any, kept: Any) -> Any:
            return tf.nest.map_structure(
                lambda a, b: tf.where(aggregate["released"], a, b), new, kept
            )

        return tff.learning.templates.LearningAlgorithmState(
            global_model_weights=tff.learning.models.ModelWeights(
                if_released(list(trainable), list(old.trainable)), old.non_trainable
            ),
            distributor=(),
            client_work=OrderedDict(round_number=state.client_work["round_number"] + 1),
            aggregator=OrderedDict(
                noise_seed=state.aggregator["noise_seed"], memory=noise["memory"]
            ),
            finalizer=if_released(optimizer_state, state.finalizer),
        )

    @tff.tensorflow.computation(state_type)
    def weights_of(state: Any) -> Any:
        return state.global_model_weights

    @tff.tensorflow.computation(state_type, weights_type)
    def with_weights(state: Any, weights: Any) -> Any:
        return tff.learning.templates.LearningAlgorithmState(
            weights, state.distributor, state.client_work, state.aggregator, state.finalizer
        )

    @tff.federated_computation()
    def initialize() -> Any:
        return tff.federated_eval(initialize_state, tff.SERVER)

    @tff.federated_computation(
        tff.FederatedType(state_type, tff.SERVER), tff.FederatedType(shards_type, tff.CLIENTS)
    )
    def next_fn(state: Any, shards: Any) -> Any:
        seed_now = tff.federated_map(round_seed, state)
        weights = tff.federated_broadcast(tff.federated_map(weights_of, state))
        reports = tff.federated_map(client, (weights, tff.federated_broadcast(seed_now), shards))
        sums = OrderedDict((name, reports[name]) for name in ("sum", "reports", "nonfinite"))
        aggregate = aggregation.next(
            tff.federated_map(aggregation_state, (seed_now, state)),
            tff.federated_zip(sums) if state_size else reports,
        )
        metrics = OrderedDict(
            reports=aggregate.measurements["reports"],
            nonfinite=aggregate.measurements["nonfinite"],
            released=aggregate.result["released"],
        )
        if state_size:
            metrics["kept"] = gather_rows(reports["kept"])
        return tff.learning.templates.LearningProcessOutput(
            tff.federated_map(finalize, (state, aggregate.result, aggregate.state)),
            tff.federated_zip(metrics),
        )

    return tff.learning.templates.LearningProcess(initialize, next_fn, weights_of, with_weights)


def _clone_layer(layer: tf.keras.layers.Layer) -> tf.keras.layers.Layer:
    """A fresh layer whose variables are read where they are used.

    In a plain graph Keras' recurrent cells read theirs once, when they are made,
    and would go on with what they were initialised to.
    """
    if getattr(layer, "_is_graph_network", False):  # a model in the model
        return tf.keras.models.clone_model(layer, clone_function=_clone_layer)
    twin = layer.__class__.from_config(layer.get_config())
    for part in twin._flatten_layers():
        if hasattr(part, "_enable_caching_device"):
            part._enable_caching_device = False
    return twin


def _starts_at_zero(make: Any, **arguments: Any) -> tf.Variable:
    """A variable of the clone: every shard assigns it, so that nothing random is drawn first."""
    shape, dtype = arguments.get("shape"), arguments.get("dtype")
    if shape is not None and dtype is not None and tf.TensorShape(shape).is_fully_defined():
        arguments["initial_value"] = lambda: tf.zeros(shape, dtype)
    return make(**arguments)


@contextlib.contextmanager
def _keras_classes_restored(model: tf.keras.Model) -> Iterator[None]:
    """Keeps models made before usable after layers are made inside TFF's graph.

    Keras 2 switches a layer's class to its TF 1 form for good when one is made
    inside a plain graph, and back when one is made eagerly.
    """
    try:
        yield
    finally:
        tf.keras.models.clone_model(model)


def build_server_optimizer(settings: Server) -> Any:
    """TFF's own optimizer for the plan's server section."""
    if settings.optimizer == "adam":
        return tff.learning.optimizers.build_adam(
            settings.learning_rate,
            beta_1=settings.beta_1,
            beta_2=settings.beta_2,
            epsilon=settings.epsilon,
        )
    momentum = settings.momentum if settings.optimizer == "momentum" else None
    return tff.learning.optimizers.build_sgdm(settings.learning_rate, momentum=momentum)


def _join(tensors: Sequence[tf.Tensor]) -> tf.Tensor:
    return tf.concat([tf.reshape(t, [-1]) for t in tensors], axis=0)


def _split(flat: tf.Tensor, like: Sequence[tf.Tensor]) -> list[tf.Tensor]:
    pieces = tf.split(flat, [t.shape.num_elements() for t in like])
    return [tf.reshape(piece, t.shape) for piece, t in zip(pieces, like)]
