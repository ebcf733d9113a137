"""Sums of gradients, led back to the order that the weights have."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from tf_dpfl.client_work.per_example.positions import Positions, in_weight_order


def orders(weights: Positions) -> dict[str, Positions]:
    """Ways to hold the entries `weights` [3, 2, 4, 5]."""
    return {
        "same": weights,
        "turned": weights.reshape(-1, 5).T,
        "runs": weights[::-1, ::-1].transpose(2, 0, 1, 3).reshape(4, -1),
        "moved by less than a run": np.roll(weights.reshape(-1), 2),
        "any": np.random.default_rng(0).permutation(weights.reshape(-1)),
    }


@pytest.mark.parametrize("name", orders(np.arange(120).reshape(3, 2, 4, 5)))
@pytest.mark.parametrize("signs", ["plus", "mixed"])
def test_every_entry_finds_its_weight(name: str, signs: str) -> None:
    weights = np.arange(7, 127).reshape(3, 2, 4, 5)
    held = orders(weights)[name].copy()
    if signs == "mixed":
        held.reshape(-1)[::3] *= -1
    values = tf.constant(held.astype(np.float32))  # each entry is its own number
    np.testing.assert_array_equal(in_weight_order(values, held, weights), weights)


def test_entries_side_by_side_are_copied_together() -> None:
    weights = np.arange(1, 121).reshape(3, 2, 4, 5)
    held = orders(weights)["runs"]

    @tf.function
    def lead_back(values: tf.Tensor) -> tf.Tensor:
        return in_weight_order(values, held, weights)

    graph = lead_back.get_concrete_function(tf.TensorSpec(held.shape)).graph
    (gather,) = (op for op in graph.get_operations() if op.type == "GatherV2")
    assert gather.inputs[0].shape == (24, 5)
