"""The simulation's noise: TensorFlow's stateless generator under 128-bit seeds.

A simulated device cannot ask the operating system from inside a graph, so its
share is drawn from a seed. The first seed of a run comes from the operating
system and is kept in the run folder: the guarantee holds against whoever does
not know it. Devices draw theirs with `protocol.noise`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

# The "user" whose seed the server's own noise is drawn from; users count from 0.
SERVER = -1

# Below a run's seed, where rounds count from 0: the seed of the nodes of tree aggregation.
TREE = -2

# Below a user's seed: the seed of its random layers' uniforms (Dropout). They need
# no secrecy, but may not be what its noise is drawn from.
RANDOM_LAYERS = 1

# Below a user's seed: the seed of the noise of its steps, under the unit "example".
STEP_NOISE = 2


def seed_from_os() -> NDArray[np.int64]:
    """A fresh 128-bit seed, int64 [2]."""
    return np.frombuffer(os.urandom(16), np.int64).copy()


def derive_seed(seed: tf.Tensor, index: tf.Tensor) -> tf.Tensor:
    """The seed (int64 [2]) number `index` (int64 []) below `seed` (int64 [2]).

    All 128 bits are carried on: TensorFlow's own fold_in keeps 64.
    """
    child = tf.bitwise.bitwise_xor(seed, tf.stack([tf.zeros([], tf.int64), index]))
    return tf.random.stateless_uniform(
        [2], seed=child, minval=None, maxval=None, dtype=tf.int64, alg="philox"
    )


def seeded_uniforms(seed: tf.Tensor, *, shape: Sequence[int]) -> tf.Tensor:
    """Independent values in [0, 1), float32 of `shape`."""
    return tf.random.stateless_uniform(shape, seed=seed, dtype=tf.float32, alg="philox")


def seeded_gaussian_noise(seed: tf.Tensor, *, size: int, stddev: float) -> tf.Tensor:
    """Independent N(0, stddev^2) values, float32 [size]; exact zeros for stddev 0."""
    if stddev == 0:
        return tf.zeros([size])
    normal = tf.random.stateless_normal([size], seed=seed, dtype=tf.float32, alg="philox")
    return normal * tf.constant(stddev, tf.float32)
