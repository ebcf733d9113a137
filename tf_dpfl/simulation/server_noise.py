"""The server's noise in a simulation, round after round: independent, banded, or of a tree.

Each way is a pair of pure functions. What correlated noise remembers between rounds
is part of the TFF state, so that checkpoints hold it and a run that goes on
from one draws what it would have drawn.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_privacy as tfp
from numpy.typing import NDArray

from tf_dpfl.privacy.factorisation import banded_coefficients
from tf_dpfl.protocol.errors import PlanError
from tf_dpfl.protocol.noise import noise_stddev_of_sum
from tf_dpfl.protocol.plan import Plan
from tf_dpfl.simulation.noise import SERVER, TREE, derive_seed, seeded_gaussian_noise

# The state travels to TFF's worker and back in one message each, which ends at 2 GiB.
_LARGEST_MEMORY_BYTES = 1 << 30


@dataclass(frozen=True)
class ServerNoise:
    """How the server makes a round's sum private.

    Attributes:
      begin: from the run's noise seed (int64 [2]), what is remembered before the first
        round: a structure of tensors of fixed shapes.
      add: from a sum (float32 [d]), the round's seed (int64 [2]) and what is remembered, the
        noised sum and what to remember.
    """

    begin: Callable[[NDArray[np.int64]], Any]
    add: Callable[[tf.Tensor, tf.Tensor, Any], tuple[tf.Tensor, Any]]


def server_noise(plan: Plan, *, size: int) -> ServerNoise:
    """What the plan says, for `size` weights.

    Raises PlanError when correlated noise would have to remember too much.
    """
    privacy = plan.privacy
    stddev = noise_stddev_of_sum(
        clip_norm=privacy.clip_norm, noise_multiplier=privacy.calibrated_noise_multiplier
    )
    if privacy.mechanism == "banded":
        _require_room(plan.bands - 1, size, "fewer privacy.bands")
        return _banded(plan.bands, size=size, stddev=stddev)
    if privacy.mechanism == "tree":
        levels = (plan.server.rounds + 1).bit_length()  # of the leaf after the last, too
        _require_room(levels + 1, size, 'privacy.mechanism = "banded" with few privacy.bands')
        return _tree(levels, size=size, stddev=stddev)
    return _independent(size=size, stddev=stddev if privacy.noise == "server" else 0.0)


def _require_room(vectors: int, size: int, instead: str) -> None:
    needed = 4 * vectors * size
    if needed > _LARGEST_MEMORY_BYTES:
        raise PlanError(
            [
                f"the server would have to remember {needed / 2**20:.0f} MiB of noise between "
                f"rounds, {vectors} vectors of {size} weights, and a simulation carries at most "
                f"{_LARGEST_MEMORY_BYTES >> 20} MiB; set {instead}"
            ]
        )


def _draw(round_seed: tf.Tensor, *, size: int, stddev: float) -> tf.Tensor:
    """The round's independent draws, float32 [size]."""
    seed = derive_seed(round_seed, tf.constant(SERVER, tf.int64))
    return seeded_gaussian_noise(seed, size=size, stddev=stddev)


def _independent(*, size: int, stddev: float) -> ServerNoise:
    return ServerNoise(
        begin=lambda _seed: (),
        add=lambda total, seed, nothing: (total + _draw(seed, size=size, stddev=stddev), nothing),
    )


def _banded(bands: int, *, size: int, stddev: float) -> ServerNoise:
    """C^-1 Z row by row: y[t] = z[t] - c[1] y[t - 1] - ... - c[bands - 1] y[t - bands + 1]."""
    later = banded_coefficients(bands)[1:].astype(np.float32)

    def add(total: tf.Tensor, seed: tf.Tensor, memory: Any) -> tuple[tf.Tensor, Any]:
        past = memory["past"]  # newest first
        noise = _draw(seed, size=size, stddev=stddev)
        noise -= tf.linalg.matvec(past, tf.constant(later), transpose_a=True)
        past = tf.concat([noise[tf.newaxis], past], axis=0)[: bands - 1]
        return total + noise, OrderedDict(past=tf.ensure_shape(past, [bands - 1, size]))

    return ServerNoise(begin=lambda _seed: OrderedDict(past=tf.zeros([bands - 1, size])), add=add)


def _tree(levels: int, *, size: int, stddev: float) -> ServerNoise:
    """tensorflow-privacy's tree, its state padded to the most levels a run can have."""

    # The clipping is the users'; the query's own is never called. Nor is its seed used.
    query = tfp.TreeResidualSumQuery.build_l2_gaussian_query(
        clip_norm=1.0, noise_multiplier=stddev, record_specs=tf.TensorSpec([size]), noise_seed=0
    )

    def with_seed(state: Any, seed: tf.Tensor) -> Any:
        generator = state.tree_state.value_generator_state._replace(seeds=seed)
        return state._replace(tree_state=state.tree_state._replace(value_generator_state=generator))

    def remembered(state: Any) -> Any:
        tree = state.tree_state
        used = tf.shape(tree.level_buffer_idx)[0]
        nodes = tf.pad(tree.level_buffer, [[0, levels - used], [0, 0]])
        indices = tf.pad(tree.level_buffer_idx, [[0, levels - used]])
        return OrderedDict(
            nodes=tf.ensure_shape(nodes, [levels, size]),
            node_levels=tf.ensure_shape(indices, [levels]),
            nodes_used=used,
            noise_of_prefix=tf.ensure_shape(state.previous_tree_noise, [size]),
            seed=tree.value_generator_state.seeds,
        )

    def begin(seed: NDArray[np.int64]) -> Any:
        # Reset to the seed's 128 bits: the query itself takes 64, and twice the same.
        of_tree = derive_seed(tf.constant(seed), tf.constant(TREE, tf.int64))
        blank = query.initial_global_state()
        return remembered(query.reset_state((), with_seed(blank, of_tree)))

    def add(total: tf.Tensor, _seed: tf.Tensor, memory: Any) -> tuple[tf.Tensor, Any]:
        used = memory["nodes_used"]
        state = with_seed(query.initial_global_state(), memory["seed"])
        tree = state.tree_state._replace(
            level_buffer=memory["nodes"][:used], level_buffer_idx=memory["node_levels"][:used]
        )
        state = state._replace(tree_state=tree, previous_tree_noise=memory["noise_of_prefix"])
        noised, state, _ = query.get_noised_result(total, state)
        return noised, remembered(state)

    return ServerNoise(begin=begin, add=add)
