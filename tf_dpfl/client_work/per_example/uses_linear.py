"""Weights in products of matrices: Dense layers, recurrent cells, attention."""

from __future__ import annotations

import math

import numpy as np
import tensorflow as tf

from tf_dpfl.client_work.per_example.layouts import Layout, by_example
from tf_dpfl.client_work.per_example.layouts_arrays import einsum_labels
from tf_dpfl.client_work.per_example.refusals import refuse, static_shape
from tf_dpfl.client_work.per_example.sites import Site
from tf_dpfl.client_work.per_example.uses import Products, use_of


def input_layout(site: Site, index: int) -> Layout:
    """Where the examples are in input `index`, which must hold some."""
    layout = site.layouts[index]
    if layout is None:
        refuse(site.op, f"its input {index} does not hold the batch")
    return layout


@use_of("MatMul", 1)
def _matmul(site: Site, grad: tf.Tensor) -> Products:
    return _times_matrix(site, grad, "transpose_a", "transpose_b")


@use_of("BatchMatMulV2", 1)
def _batch_matmul(site: Site, grad: tf.Tensor) -> Products:
    return _times_matrix(site, grad, "adj_x", "adj_y")


def _times_matrix(site: Site, grad: tf.Tensor, turned_left: str, turned_right: str) -> Products:
    """x @ W or, turned, x @ W^T: the gradient of W is then grad^T x."""
    if site.op.get_attr(turned_left) or site.positions.ndim != 2:
        refuse(site.op, "the weight is not one matrix that rows of the batch are multiplied with")
    x = by_example(site.op.inputs[0], input_layout(site, 0), examples=site.examples)
    grads = by_example(grad, site.layout, examples=site.examples)
    if site.op.get_attr(turned_right):
        return Products(grads, x, site.positions)
    return Products(x, grads, site.positions)


@use_of("Einsum", 0, 1)
def _einsum(site: Site, grad: tf.Tensor) -> Products:
    """A product over some axes; the batch and the other axes of x stay in place."""
    terms, result = einsum_labels(site.op)
    x_term, weight_term = terms[1 - site.index], terms[site.index]
    if set(weight_term) & set(x_term) & set(result):
        refuse(site.op, "an axis of the weight is neither added up nor new")
    summed = "".join(a for a in weight_term if a in x_term)
    new = "".join(a for a in weight_term if a in result)
    places = "".join(a for a in x_term if a in result)
    if len(summed) + len(new) != len(weight_term) or len(summed) + len(places) != len(x_term):
        refuse(site.op, "an axis of one input is added up by itself")
    layout = input_layout(site, 1 - site.index)
    x = _reorder(site.op.inputs[1 - site.index], x_term, places, summed)
    grads = _reorder(grad, result, places, new)
    layout = layout.at(places.index(x_term[layout.axis]))
    matrix = np.transpose(site.positions, [weight_term.index(a) for a in summed + new])
    size = math.prod(static_shape(x)[len(places) :])
    return Products(
        by_example(x, layout, examples=site.examples),
        by_example(grads, layout, examples=site.examples),
        matrix.reshape(size, -1),
    )


def _reorder(tensor: tf.Tensor, term: str, first: str, last: str) -> tf.Tensor:
    """`tensor` with its axes in the order `first` + `last`, the last ones as one axis."""
    order = [term.index(a) for a in first + last]
    if order != sorted(order):
        tensor = tf.transpose(tensor, order)
    shape = static_shape(tensor)
    return tf.reshape(tensor, [*shape[: len(first)], math.prod(shape[len(first) :])])
