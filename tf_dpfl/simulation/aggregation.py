"""Aggregation in TFF: shards' sums to one average, with the server's noise if any.

And what a simulation has to gather of its users, row by row, for their next round.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from tf_dpfl.protocol.noise import noise_stddev_of_sum
from tf_dpfl.protocol.plan import Plan
from tf_dpfl.simulation.noise import SERVER, derive_seed, seeded_gaussian_noise

SEED_TYPE = tff.TensorType(np.int64, [2])


def build_aggregation_process(plan: Plan, *, size: int) -> tff.templates.AggregationProcess:
    """Sums the shards' reports, adds server noise, divides by the public cohort.

    The state is the round's noise seed, int64 [2], set by the caller. The result
    holds `average` float32 [size] and `released` bool: false when fewer than
    `privacy.smallest_cohort` users reported, and then the average is zero.
    Measurements: `reports` and `nonfinite`, int32.
    """
    privacy = plan.privacy
    stddev = (
        noise_stddev_of_sum(
            clip_norm=privacy.clip_norm,
            noise_multiplier=privacy.calibrated_noise_multiplier,
        )
        if privacy.noise == "server"
        else 0.0
    )
    value_type = tff.to_type(
        OrderedDict(
            sum=tff.TensorType(np.float32, [size]),
            reports=tff.TensorType(np.int32),
            nonfinite=tff.TensorType(np.int32),
        )
    )

    @tff.tensorflow.computation(SEED_TYPE, value_type)
    def finish(seed: Any, total: Any) -> Any:
        noise = seeded_gaussian_noise(
            derive_seed(seed, tf.constant(SERVER, tf.int64)), size=size, stddev=stddev
        )
        released = total["reports"] >= privacy.smallest_cohort
        # By the public cohort, not by the count: the count is private.
        average = (total["sum"] + noise) / float(plan.clients.clients_per_round)
        return OrderedDict(
            average=tf.where(released, average, tf.zeros_like(average)), released=released
        )

    @tff.tensorflow.computation
    def no_seed() -> Any:
        return tf.zeros([2], tf.int64)

    @tff.federated_computation()
    def initialize_seed() -> Any:
        return tff.federated_eval(no_seed, tff.SERVER)

    @tff.federated_computation(
        initialize_seed.type_signature.result, tff.FederatedType(value_type, tff.CLIENTS)
    )
    def next_fn(seed: Any, reports: Any) -> Any:
        total = tff.federated_sum(reports)
        measurements = tff.federated_zip(
            OrderedDict(reports=total["reports"], nonfinite=total["nonfinite"])
        )
        return tff.templates.MeasuredProcessOutput(
            state=seed,
            result=tff.federated_map(finish, (seed, total)),
            measurements=measurements,
        )

    return tff.templates.AggregationProcess(initialize_seed, next_fn)


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
