"""Weights that are added or multiplied entry by entry: biases, scales, slopes."""

from __future__ import annotations

import math

import tensorflow as tf

from tf_dpfl.client_work.per_example.layouts import by_example
from tf_dpfl.client_work.per_example.refusals import refuse, static_shape
from tf_dpfl.client_work.per_example.sites import Site
from tf_dpfl.client_work.per_example.uses import Entries, use_of


@use_of("AddV2", 0, 1)
@use_of("Add", 0, 1)
@use_of("Sub", 0)
@use_of("BiasAdd", 1)
def _added(site: Site, grad: tf.Tensor) -> Entries:
    if site.op.type == "BiasAdd" and site.op.get_attr("data_format") != b"NHWC":
        refuse(site.op, "only a bias of the last axis has a rule")
    return _summed(site, grad)


@use_of("Sub", 1)
def _subtracted(site: Site, grad: tf.Tensor) -> Entries:
    return _summed(site, -grad)


@use_of("Mul", 0, 1)
def _multiplied(site: Site, grad: tf.Tensor) -> Entries:
    return _summed(site, grad * site.op.inputs[1 - site.index])


def _summed(site: Site, grads: tf.Tensor) -> Entries:
    """Sums `grads`, in the shape of the op's output, as the weight was broadcast."""
    shape = static_shape(grads)
    weight = (1,) * (len(shape) - site.positions.ndim) + site.positions.shape
    axis = site.layout.axis
    if weight[axis] != 1:
        refuse(site.op, "the weight has the axis of the batch")
    own = [size for size in weight if size != 1]
    kept = len(weight) - next((i for i, size in enumerate(weight) if size != 1), len(weight))
    if axis >= len(weight) - kept:
        refuse(site.op, "the weight has axes in front of the batch's")
    values = by_example(grads, site.layout, examples=site.examples, kept=kept)
    values = tf.reduce_sum(values, axis=1) if static_shape(values)[1] > 1 else values[:, 0]
    # Among the kept axes some may be broadcast as well.
    inner = weight[len(weight) - kept :]
    axes = [1 + i for i, size in enumerate(inner) if size == 1 and shape[len(shape) - kept + i] > 1]
    if axes:
        values = tf.reduce_sum(values, axis=axes)
    return Entries(tf.reshape(values, [site.examples, math.prod(own)]), site.positions.reshape(-1))
