"""A shard: some users trained one after the other inside one TFF client.

Most of a stock simulation's time goes into starting each client's graph and
data set; a shard pays that once for many users. Every user is still trained,
clipped and noised by itself (or step by step, under the unit "example"), and only
the sum leaves the shard.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff
from numpy.typing import NDArray

from tf_dpfl.client_work.computation import ClientComputation
from tf_dpfl.client_work.local_training import PrivateSteps, StepValues, train_locally
from tf_dpfl.client_work.update import finite_or_zero, is_finite_update
from tf_dpfl.data.federated import FederatedData, padded_clients
from tf_dpfl.protocol.interface import ExampleInterface
from tf_dpfl.protocol.noise import noise_stddev_of_share, noise_stddev_of_sum
from tf_dpfl.protocol.plan import Plan
from tf_dpfl.simulation.cohort import shards_of_a_round
from tf_dpfl.simulation.noise import (
    RANDOM_LAYERS,
    STEP_NOISE,
    derive_seed,
    seeded_gaussian_noise,
    seeded_uniforms,
)
from tf_dpfl.simulation.worker_process import usable_cores


def padded_examples(plan: Plan) -> int:
    """Examples per client rounded up to whole batches."""
    size = plan.local_training.batch_size
    return -(-plan.clients.examples_per_client // size) * size


def shard_type(plan: Plan, interface: ExampleInterface) -> tff.Type:
    """The TFF type of one shard of k users; k is open.

    Each tensor of the interface, [k, n, ...] of its dtype; `count` int32 [k] (real
    examples of each user, the rest is padding), `user_id` int64 [k] (unique in
    a round: it picks the user's noise).
    """
    n = padded_examples(plan)
    return tff.to_type(
        OrderedDict(
            [
                (tensor.name, tff.TensorType(np.dtype(tensor.dtype), [None, n, *tensor.shape]))
                for tensor in interface.tensors
            ],
            count=tff.TensorType(np.int32, [None]),
            user_id=tff.TensorType(np.int64, [None]),
        )
    )


def make_shards(
    data: FederatedData,
    user_ids: NDArray[np.int64],
    plan: Plan,
    *,
    places: int | None = None,
) -> list[OrderedDict[str, Any]]:
    """The client data of one round: the cohort `user_ids` cut into shards.

    There are `shards_of_a_round` for so many `places` (None: this machine's
    cores), some perhaps without users. A model of several inputs, of integers or
    with other targets than class ids needs `data.fitted(interface)`. Raises
    ValueError when a user is named twice: both would draw one noise.
    """
    if len(np.unique(user_ids)) != len(user_ids):
        raise ValueError("user_ids names a user twice; a cohort holds each user once")
    shards = shards_of_a_round(plan, places=places or usable_cores())
    return [_shard(data, ids, plan) for ids in np.array_split(user_ids, shards)]


def _shard(data: FederatedData, user_ids: NDArray[np.int64], plan: Plan) -> OrderedDict[str, Any]:
    examples, count = padded_clients(data, user_ids, padded_examples(plan))
    # Whole batches may leave room for more examples than the plan allows.
    count = np.minimum(count, plan.clients.examples_per_client).astype(np.int32)
    return OrderedDict(examples, count=count, user_id=np.asarray(user_ids, np.int64))


def _uniforms(
    computation: ClientComputation, user_seed: tf.Tensor, plan: Plan
) -> StepValues | None:
    """What the random layers of one user take at each step; None without such layers."""
    values = computation.interface.random_values
    if not values:
        return None
    seed = derive_seed(user_seed, tf.constant(RANDOM_LAYERS, tf.int64))
    shape = [plan.local_training.batch_size, values]
    return lambda step: seeded_uniforms(derive_seed(seed, tf.cast(step, tf.int64)), shape=shape)


def _private_steps(
    computation: ClientComputation, user_seed: tf.Tensor, plan: Plan
) -> PrivateSteps | None:
    """Steps of DP-SGD with noise of their own; None unless the unit is "example"."""
    privacy, size = plan.privacy, computation.layout.size
    if privacy.unit != "example":
        return None
    stddev = noise_stddev_of_sum(
        clip_norm=privacy.clip_norm, noise_multiplier=privacy.calibrated_noise_multiplier
    )
    seed = derive_seed(user_seed, tf.constant(STEP_NOISE, tf.int64))

    def noise(step: tf.Tensor) -> tf.Tensor:
        seed_of_step = derive_seed(seed, tf.cast(step, tf.int64))
        return seeded_gaussian_noise(seed_of_step, size=size, stddev=stddev)

    return PrivateSteps(tf.constant(privacy.clip_norm, tf.float32), noise)


def _share_stddev(plan: Plan) -> float:
    """Standard deviation of one user's share; 0 where the server adds the noise."""
    privacy = plan.privacy
    if privacy.noise != "device":
        return 0.0
    return noise_stddev_of_share(
        clip_norm=privacy.clip_norm,
        noise_multiplier=privacy.calibrated_noise_multiplier,
        smallest_cohort=privacy.smallest_cohort,
    )


def train_shard(
    computation: ClientComputation,
    weights: tf.Tensor,
    seed: tf.Tensor,
    shard: OrderedDict[str, tf.Tensor],
    *,
    plan: Plan,
) -> OrderedDict[str, tf.Tensor]:
    """Trains, clips and noises each user of `shard` and adds the reports up.

    Args:
      computation: the client computation; its variables are scratch space.
      weights: float32 [d], where every user starts.
      seed: int64 [2], the round's noise seed.
      shard: of `shard_type`.
      plan: with a calibrated noise multiplier.

    Returns:
      `sum` float32 [d], `reports` int32 [], `nonfinite` int32 [] (users whose
      update was not finite and counted as zero).
    """
    size = computation.layout.size
    clip_norm = tf.constant(plan.privacy.clip_norm, tf.float32)

    def one_user(
        index: tf.Tensor, total: tf.Tensor, nonfinite: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        with tf.control_dependencies([computation.set_weights(weights)]):
            start = tf.identity(weights)
        examples = {
            tensor.name: shard[tensor.name][index] for tensor in computation.interface.tensors
        }
        user_seed = derive_seed(seed, shard["user_id"][index])
        private = _private_steps(computation, user_seed, plan)
        train_locally(
            computation,
            examples,
            shard["count"][index],
            settings=plan.local_training,
            random=_uniforms(computation, user_seed, plan),
            private=private,
        )
        if private is None:
            share = seeded_gaussian_noise(user_seed, size=size, stddev=_share_stddev(plan))
            report = computation.privatize_update(start, clip_norm, share)
        else:
            report = finite_or_zero(computation.update(start))
        # Not logical_not: Grappler turns !(a < b) into a >= b, false for NaN.
        broken = 1 - tf.cast(is_finite_update(computation.update(start)), tf.int32)
        return index + 1, total + report, nonfinite + broken

    reports = tf.shape(shard["user_id"])[0]
    _, total, nonfinite = tf.while_loop(
        lambda index, *_: index < reports,
        one_user,
        (tf.constant(0), tf.zeros([size]), tf.constant(0)),
        parallel_iterations=1,  # the users share the computation's variables
    )
    return OrderedDict(sum=total, reports=reports, nonfinite=nonfinite)
