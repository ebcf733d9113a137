"""The clip norm that follows the users' norms, in TensorFlow (Andrew et al. 1905.03871).

It is a released value like the model: from one round to the next it sees nothing but the
noised count of updates that were not clipped.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from tf_dpfl.protocol.plan import CLIP_NORMS_BELOW, SMALLEST_CLIP_NORM, Plan
from tf_dpfl.simulation.noise import CLIP_COUNT, derive_seed, seeded_gaussian_noise

# The float32 numbers that a plan's clip_norm may be.
_SMALLEST = np.nextafter(np.float32(SMALLEST_CLIP_NORM), np.float32(np.inf))
_LARGEST = np.nextafter(np.float32(CLIP_NORMS_BELOW), np.float32(0))


def first_clip_norm(plan: Plan) -> Any:
    """What the state of a run begins with: float32 [], or () where the plan's never changes."""
    if not plan.privacy.adaptive_clipping:
        return ()
    return tf.clip_by_value(tf.constant(plan.privacy.clip_norm, tf.float32), _SMALLEST, _LARGEST)


def next_clip_norm(
    plan: Plan, clip_norm: tf.Tensor, *, unclipped: tf.Tensor, released: tf.Tensor
) -> tf.Tensor:
    """The clip norm of the next round, float32 [], within what a plan's may be.

    Args:
      plan: with adaptive clipping.
      clip_norm: float32 [], this round's.
      unclipped: float32 [], the noised sum over users of +1/2 for one that was not
        clipped and -1/2 for one that was.
      released: bool []; a round that releases nothing changes nothing.
    """
    privacy = plan.privacy
    # By the public cohort, not by the count of reports: that is private.
    fraction = unclipped / float(plan.clients.clients_per_round) + 0.5
    factor = tf.exp(-privacy.clip_learning_rate * (fraction - privacy.target_quantile))
    moved = tf.clip_by_value(clip_norm * factor, _SMALLEST, _LARGEST)
    return tf.where(released, moved, clip_norm)


def noise_of_count(owner_seed: tf.Tensor, *, stddev: float) -> tf.Tensor:
    """The noise that a user, or the server, adds to the count: float32 [].

    `owner_seed` is the seed (int64 [2]) of its noise on the updates; this one is independent.
    """
    seed = derive_seed(owner_seed, tf.constant(CLIP_COUNT, tf.int64))
    return seeded_gaussian_noise(seed, size=1, stddev=stddev)[0]
