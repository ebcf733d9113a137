"""A shard: some users trained one after the other inside one TFF client.

Most of a stock simulation's time goes into starting each client's graph and
data set; a shard pays that once for many users. Every user is still trained,
clipped and noised by itself (or step by step, under the unit "example"), and only
the sum leaves the shard.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from tf_dpfl.client_work.computation import ClientComputation
from tf_dpfl.client_work.dense_users import (
    DenseNet,
    NotDenseError,
    train_users,
    users_of_a_block,
)
from tf_dpfl.client_work.local_training import PrivateSteps, StepValues, train_locally
from tf_dpfl.client_work.update import bounded, clip_factor, squared_norm
from tf_dpfl.data.columns import FederatedData
from tf_dpfl.protocol.noise import noise_stddev_of_share
from tf_dpfl.protocol.plan import Plan
from tf_dpfl.protocol.private_step import noise_stddev_of_step, sensitivity_of_step
from tf_dpfl.simulation.adaptive_clipping import noise_of_count
from tf_dpfl.simulation.cohort import shards_of_a_round
from tf_dpfl.simulation.noise import (
    RANDOM_LAYERS,
    STEP_NOISE,
    derive_seed,
    seeded_gaussian_noise,
    seeded_uniforms,
)
from tf_dpfl.simulation.records import OPTIMIZER_STATE, ShardExamples, shard_of
from tf_dpfl.simulation.worker_process import usable_cores


def make_shards(
    data: FederatedData,
    user_ids: NDArray[np.int64],
    plan: Plan,
    *,
    places: int | None = None,
    optimizer_states: NDArray[np.float32] | None = None,
) -> list[OrderedDict[str, Any]]:
    """The client data of one round: the cohort `user_ids` cut into shards.

    There are `shards_of_a_round` for so many `places` (None: this machine's
    cores), some perhaps without users. `data` are those that the process was built
    with. `optimizer_states`, float32 [users, s], go with plans that keep them: where each
    user's optimizer goes on from, zeros for one that starts (`OptimizerStates.of`).

    Raises ValueError when a user is named twice: both would draw one noise; and when
    `optimizer_states` are missing or not asked for. IndexError for an id that is no user.
    """
    if len(np.unique(user_ids)) != len(user_ids):
        raise ValueError("user_ids names a user twice; a cohort holds each user once")
    keeps = plan.local_training.keeps_state
    if keeps != (optimizer_states is not None):
        raise ValueError(
            f'local_training.optimizer_state="{plan.local_training.optimizer_state}" goes '
            f"{'with' if keeps else 'without'} optimizer_states, one row for each user"
        )
    shards = shards_of_a_round(plan, places=places or usable_cores())
    ids = np.array_split(user_ids, shards)
    if optimizer_states is None:
        return [shard_of(data, some, plan) for some in ids]
    states = np.array_split(optimizer_states, shards)
    return [shard_of(data, u, plan, optimizer_states=s) for u, s in zip(ids, states)]


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
    settings, clip_norm = plan.local_training, privacy.clip_norm
    stddev = noise_stddev_of_step(
        settings,
        clip_norm=clip_norm,
        noise_multiplier=privacy.calibrated_noise_multiplier,
    )
    seed = derive_seed(user_seed, tf.constant(STEP_NOISE, tf.int64))

    def noise(step: tf.Tensor) -> tf.Tensor:
        seed_of_step = derive_seed(seed, tf.cast(step, tf.int64))
        return seeded_gaussian_noise(seed_of_step, size=size, stddev=stddev)

    sensitivity = sensitivity_of_step(settings, clip_norm=clip_norm)
    return PrivateSteps(tf.constant(sensitivity), noise)


def _share(noise: float, plan: Plan) -> float:
    """One user's part of noise of that deviation; 0 where the server adds the noise."""
    privacy = plan.privacy
    if privacy.noise != "device":
        return 0.0
    return noise_stddev_of_share(
        clip_norm=1.0, noise_multiplier=noise, smallest_cohort=privacy.smallest_cohort
    )


@dataclass(frozen=True)
class ShardTraining:
    """How the users of a shard are trained: all alike, whichever way costs least.

    Attributes:
      computation: the client computation; its variables are scratch space.
      plan: with a calibrated noise multiplier.
      users: about how many a shard has.
      dense_net: trains blocks of users at once; None trains one after the other.
      reason: why that way, in words.
    """

    computation: ClientComputation
    plan: Plan
    users: int
    dense_net: DenseNet | None
    reason: str


def choose_training(computation: ClientComputation, plan: Plan) -> ShardTraining:
    """Blocks of users where the model is a dense network, else user by user.

    Call it where the shard's graph is made: it traces the model.
    """
    shards = shards_of_a_round(plan, places=usable_cores())
    users = -(-plan.clients.clients_per_round // shards)
    net, reason = None, "every example's gradient is clipped"
    if plan.local_training.keeps_state:
        reason = "the optimizer's state is kept, user by user"
    elif plan.privacy.clipping != "global":
        reason = f'clipping "{plan.privacy.clipping}" needs the whole update of each user'
    elif plan.privacy.unit == "user":
        try:
            examples = plan.clients.examples_per_client
            net = DenseNet(computation, plan.local_training, examples=examples)
            reason = "a dense network with a low-rank first layer"
        except NotDenseError as error:
            reason = str(error)
    return ShardTraining(computation, plan, users, net, reason)


def train_shard(
    training: ShardTraining,
    weights: tf.Tensor,
    seed: tf.Tensor,
    examples: ShardExamples,
    *,
    clip_norm: tf.Tensor,
) -> OrderedDict[str, tf.Tensor]:
    """Trains, clips and noises each user of a shard and adds the reports up.

    Args:
      training: of `choose_training`.
      weights: float32 [d], where every user starts.
      seed: int64 [2], the round's noise seed.
      examples: of the shard's users.
      clip_norm: float32 [], of a user's update (unit "user") or of one example's
        gradient (unit "example").

    Returns:
      `sum` float32 [d], `reports` int32 [], `nonfinite` int32 [] (users whose
      update was not finite and counted as zero). With adaptive clipping also `unclipped`
      float32 []: +1/2 for each user that was not clipped, -1/2 for each other one, broken
      ones too, and the noise that devices add to it. Where optimizer states are kept also
      `kept`: `user_id` int64 [k] and `optimizer_state` float32 [k, s]; that of a user
      whose update or new state is not finite is what it was.
    """
    states = None
    if training.dense_net is None:
        sums, states = _train_one_by_one(training, weights, seed, examples, clip_norm)
    else:
        sums = _train_in_blocks(training, training.dense_net, weights, seed, examples, clip_norm)
    ids = examples.user_ids
    noise, noise_of_counts = _sums_of_shares(training, seed, ids, clip_norm)
    result = OrderedDict(sum=sums.total + noise, reports=tf.size(ids), nonfinite=sums.nonfinite)
    if training.plan.privacy.adaptive_clipping:
        centred = tf.cast(sums.unclipped, tf.float32) - 0.5 * tf.cast(tf.size(ids), tf.float32)
        result["unclipped"] = centred + noise_of_counts
    if states is not None:
        result["kept"] = OrderedDict([("user_id", ids), (OPTIMIZER_STATE, states)])
    return result


class _Sums(NamedTuple):
    """Over users: float32 [d] of the clipped updates; int32 [] of the broken and the unclipped."""

    total: tf.Tensor
    nonfinite: tf.Tensor
    unclipped: tf.Tensor

    @classmethod
    def zero(cls, size: int) -> _Sums:
        """Over nobody."""
        return cls(tf.zeros([size]), tf.constant(0), tf.constant(0))


def _train_one_by_one(
    training: ShardTraining,
    weights: tf.Tensor,
    seed: tf.Tensor,
    examples: ShardExamples,
    clip_norm: tf.Tensor,
) -> tuple[_Sums, tf.Tensor | None]:
    """The users' sums, and the states that are kept."""
    computation, plan = training.computation, training.plan
    size = computation.layout.size
    before = examples.optimizer_states

    def one_user(index: tf.Tensor, sums: _Sums, *states: tf.TensorArray) -> tuple[Any, ...]:
        ready = [computation.set_weights(weights)]
        if before is not None:
            with tf.control_dependencies(ready):
                ready = [computation.set_optimizer_state(before[index])]
        with tf.control_dependencies(ready):
            start = tf.identity(weights)
        user_seed = derive_seed(seed, examples.user_ids[index])
        private = _private_steps(computation, user_seed, plan)
        train_locally(
            computation,
            examples.of_user(index, multiple=plan.local_training.batch_size),
            examples.counts[index],
            settings=plan.local_training,
            random=_uniforms(computation, user_seed, plan),
            private=private,
        )
        update = computation.update(start)
        squared = squared_norm(update)
        finite = squared < update.dtype.max

        def added() -> tf.Tensor:
            return sums.total + _clipped(update, squared, clip_norm, computation, plan)

        # A branch, not a select: it costs the finite ones nothing.
        total = tf.cond(finite, added, lambda: sums.total)
        if before is not None:
            after = computation.get_optimizer_state()
            usable = finite & tf.reduce_all(tf.math.is_finite(after))
            states = (states[0].write(index, tf.where(usable, after, before[index])),)
        # Not logical_not: Grappler turns !(a < b) into a >= b, false for NaN.
        nonfinite = sums.nonfinite + 1 - tf.cast(finite, tf.int32)
        unclipped = sums.unclipped + tf.cast(tf.sqrt(squared) <= clip_norm, tf.int32)
        return index + 1, _Sums(total, nonfinite, unclipped), *states

    users = tf.size(examples.user_ids)
    kept = []
    if before is not None:
        kept = [tf.TensorArray(tf.float32, users, element_shape=before.shape[1:])]
    _, sums, *kept = tf.while_loop(
        lambda index, *_: index < users,
        one_user,
        (tf.constant(0), _Sums.zero(size), *kept),
        parallel_iterations=1,  # the users share the computation's variables
    )
    return sums, kept[0].stack() if kept else None


def _clipped(
    update: tf.Tensor,
    squared: tf.Tensor,
    clip_norm: tf.Tensor,
    computation: ClientComputation,
    plan: Plan,
) -> tf.Tensor:
    """A finite update of that squared norm, as it is added up."""
    if plan.privacy.unit == "example":  # its gradients were clipped
        return update
    clipping = plan.privacy.clipping
    if clipping == "global":
        return update * clip_factor(squared, clip_norm)
    sizes = computation.sizes
    return bounded(update, clip_norm, clipping=clipping, sizes=sizes, squares=squared_norm)


def _train_in_blocks(
    training: ShardTraining,
    net: DenseNet,
    weights: tf.Tensor,
    seed: tf.Tensor,
    examples: ShardExamples,
    clip_norm: tf.Tensor,
) -> _Sums:
    """As `_train_one_by_one`, for a dense network."""
    computation, plan = training.computation, training.plan
    batch_size = plan.local_training.batch_size
    block = users_of_a_block(net, examples=plan.clients.examples_per_client, users=training.users)
    start = computation.split(weights)
    # Users of about as many examples together: little is padded.
    order = tf.argsort(examples.counts, direction="DESCENDING")
    users = tf.size(order)

    def one_block(first: tf.Tensor, sums: _Sums) -> tuple[tf.Tensor, _Sums]:
        places = first + tf.range(block)
        chosen = tf.gather(order, tf.minimum(places, users - 1))
        # The last block is filled up with users without examples.
        counts = tf.where(places < users, tf.gather(examples.counts, chosen), 0)
        seeds = _seeds(seed, tf.gather(examples.user_ids, chosen)) if net.draws else None
        updates = train_users(
            net,
            start,
            examples.of_users(chosen, counts, multiple=batch_size),
            counts,
            settings=plan.local_training,
            random=None if seeds is None else _uniforms_of_users(computation, seeds, plan),
        )
        pieces, broken = updates.clipped_sum(clip_norm, counts)
        flat = tf.concat([tf.reshape(piece, [-1]) for piece in pieces], axis=0)
        unclipped = updates.unclipped(clip_norm, counts) & (places < users)
        return first + block, _Sums(
            sums.total + flat, sums.nonfinite + _count(broken), sums.unclipped + _count(unclipped)
        )

    return tf.while_loop(
        lambda first, _: first < users,
        one_block,
        (tf.constant(0), _Sums.zero(computation.layout.size)),
        parallel_iterations=1,  # memory: one block at a time
    )[1]


def _count(users: tf.Tensor) -> tf.Tensor:
    return tf.reduce_sum(tf.cast(users, tf.int32))


def _seeds(seed: tf.Tensor, user_ids: tf.Tensor) -> tf.Tensor:
    """The seeds of several users, int64 [K, 2]."""
    of_user = tf.TensorSpec([2], tf.int64)
    return tf.map_fn(lambda user: derive_seed(seed, user), user_ids, fn_output_signature=of_user)


def _uniforms_of_users(
    computation: ClientComputation, user_seeds: tf.Tensor, plan: Plan
) -> StepValues:
    """What the random layers of K users take at their steps, float32 [K, batch_size, r]."""
    values = tf.TensorSpec([plan.local_training.batch_size, computation.interface.random_values])

    def of_user(user: tuple[tf.Tensor, tf.Tensor]) -> tf.Tensor:
        user_seed, step = user
        uniforms = _uniforms(computation, user_seed, plan)
        return None if uniforms is None else uniforms(step)

    return lambda steps: tf.map_fn(of_user, (user_seeds, steps), fn_output_signature=values)


def _sums_of_shares(
    training: ShardTraining, seed: tf.Tensor, user_ids: tf.Tensor, clip_norm: tf.Tensor
) -> tuple[tf.Tensor | float, tf.Tensor | float]:
    """The users' shares of the noise on updates, and on the count of the unclipped.

    Each of its own seed; 0 where users add none.
    """
    plan, size = training.plan, training.computation.layout.size
    if plan.privacy.unit == "example":
        return 0.0, 0.0
    # In clip norms, so that the noise keeps its size beside a clip norm that moves.
    of_update = _share(plan.noise_multiplier_of_updates, plan)
    of_count = _share(plan.clip_count_stddev, plan) if plan.privacy.adaptive_clipping else 0.0
    if of_update == of_count == 0:
        return 0.0, 0.0

    def add(
        index: tf.Tensor, total: tf.Tensor, count: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        own = derive_seed(seed, user_ids[index])
        share = seeded_gaussian_noise(own, size=size, stddev=of_update, unit=clip_norm)
        return index + 1, total + share, count + noise_of_count(own, stddev=of_count)

    users = tf.size(user_ids)
    loop = (tf.constant(0), tf.zeros([size]), tf.constant(0.0))
    return tf.while_loop(lambda index, *_: index < users, add, loop, parallel_iterations=1)[1:]
