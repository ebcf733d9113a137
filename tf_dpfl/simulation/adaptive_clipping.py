"""The clip norm that follows the users' norms, in TensorFlow (Andrew et al. 1905.03871).

`protocol.clip_norms` is the same for the server of devices; the formula is there.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tf_dpfl.protocol import clip_norms
from tf_dpfl.protocol.plan import Plan
from tf_dpfl.simulation.noise import CLIP_COUNT, derive_seed, seeded_gaussian_noise


def first_clip_norm(plan: Plan) -> Any:
    """What the state of a run begins with: float32 [], or () where the plan's never changes."""
    if not plan.privacy.adaptive_clipping:
        return ()
    return tf.constant(clip_norms.first_clip_norm(plan), tf.float32)


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
    factor = tf.exp(clip_norms.exponent(plan, unclipped))
    moved = tf.clip_by_value(clip_norm * factor, clip_norms.SMALLEST, clip_norms.LARGEST)
    return tf.where(released, moved, clip_norm)


def noise_of_count(owner_seed: tf.Tensor, *, stddev: float) -> tf.Tensor:
    """The noise that a user, or the server, adds to the count: float32 [].

    `owner_seed` is the seed (int64 [2]) of its noise on the updates; this one is independent.
    """
    seed = derive_seed(owner_seed, tf.constant(CLIP_COUNT, tf.int64))
    return seeded_gaussian_noise(seed, size=1, stddev=stddev)[0]
