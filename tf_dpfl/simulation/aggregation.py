"""Aggregation in TFF: shards' sums to one average, with the server's noise if any.

And what a simulation has to gather of its users, row by row, for their next round.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from tf_dpfl.protocol.plan import Plan
from tf_dpfl.simulation.server_noise import server_noise

SEED_TYPE = tff.TensorType(np.int64, [2])


def build_aggregation_process(plan: Plan, *, size: int) -> tff.templates.AggregationProcess:
    """Sums the shards' reports, adds server noise, divides by the public cohort.

    The state is the round's noise `seed`, int64 [2], set by the caller, and the `memory`
    of the noise (`ServerNoise`). The result holds `average` float32 [size] and `released`
    bool: false when fewer than `privacy.smallest_cohort` users reported, and then
    the average is zero. Measurements: `reports` and `nonfinite`, int32.
    """
    noise = server_noise(plan, size=size)
    value_type = tff.to_type(
        OrderedDict(
            sum=tff.TensorType(np.float32, [size]),
            reports=tff.TensorType(np.int32),
            nonfinite=tff.TensorType(np.int32),
        )
    )

    @tff.tensorflow.computation
    def first_state() -> Any:
        return OrderedDict(seed=tf.zeros([2], tf.int64), memory=noise.begin(np.zeros(2, np.int64)))

    state_type = first_state.type_signature.result

    @tff.tensorflow.computation(state_type, value_type)
    def finish(state: Any, total: Any) -> Any:
        noised, memory = noise.add(total["sum"], state["seed"], state["memory"])
        released = total["reports"] >= plan.privacy.smallest_cohort
        # By the public cohort, not by the count: the count is private.
        average = noised / float(plan.clients.clients_per_round)
        result = OrderedDict(
            average=tf.where(released, average, tf.zeros_like(average)), released=released
        )
        return result, OrderedDict(seed=state["seed"], memory=memory)

    @tff.federated_computation()
    def initialize() -> Any:
        return tff.federated_eval(first_state, tff.SERVER)

    @tff.federated_computation(
        initialize.type_signature.result, tff.FederatedType(value_type, tff.CLIENTS)
    )
    def next_fn(state: Any, reports: Any) -> Any:
        total = tff.federated_sum(reports)
        measurements = tff.federated_zip(
            OrderedDict(reports=total["reports"], nonfinite=total["nonfinite"])
        )
        result, new_state = tff.federated_map(finish, (state, total))
        return tff.templates.MeasuredProcessOutput(
            state=new_state, result=result, measurements=measurements
        )

    return tff.templates.AggregationProcess(initialize, next_fn)


def gather_rows(parts: Any) -> Any:
    """All clients' rows below each other, at the server, in no order.

    `parts` is a federated value of the clients, a structure of tensors [k, ...] with an
    open k each.
    """
    part_type = parts.type_signature.member

    @tff.tensorflow.computation
    def nothing() -> Any:
        return tff.types.structure_from_tensor_type_tree(_no_rows, part_type)

    @tff.tensorflow.computation(part_type, part_type)
    def join(upper: Any, lower: Any) -> Any:
        return tf.nest.map_structure(lambda a, b: tf.concat([a, b], axis=0), upper, lower)

    @tff.tensorflow.computation(part_type)
    def whole(rows: Any) -> Any:
        return rows

    return tff.federated_aggregate(parts, nothing(), join, join, whole)


def _no_rows(tensor_type: tff.TensorType) -> tf.Tensor:
    none = tf.zeros([0, *tensor_type.shape[1:]], tensor_type.dtype)
    # Of open length, as what it is the start of.
    return tf.compat.v1.placeholder_with_default(none, [None, *tensor_type.shape[1:]])
