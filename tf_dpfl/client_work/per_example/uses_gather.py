"""Weights looked up by ids: embeddings."""

from __future__ import annotations

import tensorflow as tf

from tf_dpfl.client_work.per_example.layouts import by_example
from tf_dpfl.client_work.per_example.refusals import refuse
from tf_dpfl.client_work.per_example.sites import Site
from tf_dpfl.client_work.per_example.uses import Lookups, use_of
from tf_dpfl.client_work.per_example.uses_linear import input_layout
from tf_dpfl.client_work.static_values import static_value


@use_of("ResourceGather", 0)
@use_of("GatherV2", 0)
def _rows(site: Site, grad: tf.Tensor) -> Lookups:
    axis = 0 if site.op.type == "ResourceGather" else static_value(site.op.inputs[2])
    if site.positions.ndim != 2 or axis != 0:
        refuse(site.op, "only rows of a matrix can be looked up")
    ids = by_example(site.op.inputs[1], input_layout(site, 1), examples=site.examples, kept=0)
    return Lookups(
        tf.cast(ids, tf.int32),
        _columns(site, grad),
        site.positions,
    )


def _columns(site: Site, grad: tf.Tensor) -> tf.Tensor:
    """What comes back to each lookup, once where it is the same for all of an example.

    As under a mean over words, whose gradient is one vector repeated.
    """
    layout = site.layout
    if grad.op.type == "Tile" and (layout.axis, layout.outer, layout.inner) == (0, 1, 1):
        once = grad.op.inputs[0]
        width = grad.shape[-1]
        if once.shape == [site.examples, *[1] * (len(grad.shape) - 2), width]:
            return tf.reshape(once, [site.examples, 1, width])
    return by_example(grad, layout, examples=site.examples)
