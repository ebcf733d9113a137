"""Elementwise ops. Times are of 100,000 entries in tflite-runtime 2.14, in microseconds."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from tensorflow.lite.python.schema_py_generated import ActivationFunctionType

from tf_dpfl.export.tuning.file import Graph
from tf_dpfl.export.tuning.rewrites import rewrite_of


@rewrite_of("SUB")
def _difference(graph: Graph, op: Any) -> bool:
    """a - b as a + (-b) where one is broadcast: 37 instead of 510."""
    left, right = op.inputs
    (output,) = op.outputs
    if graph.shape(left) == graph.shape(right) or not graph.is_float(output):
        return False
    activation = op.builtinOptions.fusedActivationFunction
    _add(graph, left, negative(graph, right), into=output, activation=activation)
    return True


@rewrite_of("ADD", "DIV")
def _with_equal_numbers(graph: Graph, op: Any) -> bool:
    """A constant of equal numbers as one number: 11 instead of 16.

    The converter multiplies out what is constant in a gradient: the 1 / n of a mean over pixels
    as a whole batch of images.
    """
    left, right = (int(tensor) for tensor in op.inputs)
    name, (output,) = graph.name(op), op.outputs
    if name == "DIV":  # 410 with one number, 26 with as many
        terms = _filled(graph, left), _filled(graph, right)
    else:
        terms = _with_one_number(graph, left, right)
    if terms == (left, right):
        return False
    activation = op.builtinOptions.fusedActivationFunction
    _combine(graph, name, terms, into=output, activation=activation)
    return True


@rewrite_of("SQUARED_DIFFERENCE")
def _squared_difference(graph: Graph, op: Any) -> bool:
    """Broadcast, as for SUB."""
    left, right = op.inputs
    (output,) = op.outputs
    if graph.shape(left) == graph.shape(right) or not graph.is_float(output):
        return False
    difference = _add(graph, left, negative(graph, right), shape=graph.shape(output))
    _multiply(graph, difference, difference, into=output)
    return True


@rewrite_of("SQUARE")
def _square(graph: Graph, op: Any) -> bool:
    """x x: 26 instead of 243."""
    if not graph.is_float(op.inputs[0]):
        return False
    _multiply(graph, op.inputs[0], op.inputs[0], into=op.outputs[0])
    return True


@rewrite_of("ABS")
def _magnitude(graph: Graph, op: Any) -> bool:
    """x sign(x), which keeps NaN: 62 instead of 2358."""
    if not graph.is_float(op.inputs[0]):
        return False
    (values,), (output,) = op.inputs, op.outputs
    _multiply(graph, values, graph.add("SIGN", [values], graph.shape(values)), into=output)
    return True


@rewrite_of("MUL")
def _product(graph: Graph, op: Any) -> bool:
    return _with_equal_numbers(graph, op) or _scaled_product(graph, op)


def _scaled_product(graph: Graph, op: Any) -> bool:
    """(c x) y as (c y) x for a constant scalar c, where y is broadcast: one pass over x less."""
    for scaled, small in (op.inputs, op.inputs[::-1]):
        made_by = graph.producer(scaled)
        if made_by is None or graph.name(made_by) != "MUL" or not graph.is_float(scaled):
            continue
        scalars = [t for t in made_by.inputs if graph.value(t) is not None and not graph.shape(t)]
        fewer = math.prod(graph.shape(small)) < math.prod(graph.shape(scaled))
        if len(scalars) != 1 or not fewer or made_by.builtinOptions.fusedActivationFunction:
            continue
        (values,) = [t for t in made_by.inputs if t != scalars[0]]
        small = _multiply(graph, small, scalars[0], shape=graph.shape(small))
        activation = op.builtinOptions.fusedActivationFunction
        _multiply(graph, values, small, into=op.outputs[0], activation=activation)
        return True
    return False


@rewrite_of("ADD_N")
def _sum(graph: Graph, op: Any) -> bool:
    """One ADD after the other: 21 for each instead of 47. What TILE repeats is broadcast."""
    (output,) = op.outputs
    if not graph.is_float(output):
        return False
    terms = [(_before_tile(graph, int(term)), int(term)) for term in op.inputs]
    (_, total), *others = sorted(terms, key=lambda term: term[0] != term[1])
    for index, (term, _) in enumerate(others):
        last = index == len(others) - 1
        total = _add(graph, total, term, shape=graph.shape(output), into=output if last else None)
    return bool(others)


def _before_tile(graph: Graph, tensor: int) -> int:
    """What a broadcast makes `tensor` of, if a TILE has made it; else `tensor`."""
    made_by = graph.producer(tensor)
    if made_by is None or graph.name(made_by) != "TILE":
        return tensor
    source = int(made_by.inputs[0])
    pairs = zip(graph.shape(source), graph.shape(tensor))
    return source if all(size in (1, tiled) for size, tiled in pairs) else tensor


@rewrite_of("CAST")
def _comparison_as_float(graph: Graph, op: Any) -> bool:
    """1.0 where x > c, for a constant c, as sign(relu(x - c)): 47 instead of 489.

    Comparisons that broadcast are slow. The sign of a float32 difference is exact.
    """
    (condition,), (output,) = op.inputs, op.outputs
    compared = graph.producer(condition)
    if compared is None or not graph.is_float(output):
        return False
    name = graph.name(compared)
    if name not in ("GREATER", "LESS", "GREATER_EQUAL", "LESS_EQUAL"):
        return False
    left, right = (int(tensor) for tensor in compared.inputs)
    threshold, shape = graph.value(right), graph.shape(output)
    if threshold is None or threshold.size != 1 or not graph.is_float(left) or not shape:
        return False
    above = name in ("GREATER", "LESS_EQUAL")
    excess = left if above else negative(graph, left)
    if threshold.item() != 0.0:
        margin = -threshold if above else threshold
        excess = _add(graph, excess, graph.constant(margin), shape=shape)
    if not _is_rectified(graph, excess):
        excess = graph.add("RELU", [excess], shape)
    if name in ("GREATER", "LESS"):
        graph.add("SIGN", [excess], (), into=output)
    else:
        opposite = negative(graph, graph.add("SIGN", [excess], shape))
        _add(graph, opposite, graph.constant(np.ones((), np.float32)), into=output)
    return True


def _is_rectified(graph: Graph, tensor: int) -> bool:
    """Whether `tensor` comes out of a ReLU, which another one would leave as it is."""
    made_by = graph.producer(tensor)
    while made_by is not None and graph.name(made_by) == "RESHAPE":
        made_by = graph.producer(made_by.inputs[0])
    if made_by is None:
        return False
    fused = getattr(made_by.builtinOptions, "fusedActivationFunction", None)
    return graph.name(made_by) == "RELU" or fused == ActivationFunctionType.RELU


def negative(graph: Graph, tensor: int) -> int:
    """-`tensor`; a constant stays one."""
    value = graph.value(tensor)
    if value is not None:
        return graph.constant(-value)
    return graph.add("NEG", [tensor], graph.shape(tensor), options="NegOptions")


def _add(graph: Graph, left: int, right: int, **place: Any) -> int:
    return _combine(graph, "ADD", _with_one_number(graph, left, right), **place)


def _multiply(graph: Graph, left: int, right: int, **place: Any) -> int:
    return _combine(graph, "MUL", (left, right), **place)


def _combine(
    graph: Graph,
    name: str,
    terms: tuple[int, int],
    *,
    shape: tuple[int, ...] = (),
    into: int | None = None,
    activation: int = 0,
) -> int:
    """ADD, MUL or DIV of two: a new tensor of `shape`, or `into` one that is there."""
    return graph.add(
        name,
        terms,
        shape,
        into=into,
        options=f"{name.title()}Options",
        fusedActivationFunction=activation,
    )


def _with_one_number(graph: Graph, left: int, right: int) -> tuple[int, int]:
    """Both, but of a constant of equal numbers, beside its like in shape, one number."""
    if graph.shape(left) == graph.shape(right):
        number = _number_of(graph, right)
        if number is not None:
            return left, number
        number = _number_of(graph, left)
        if number is not None:
            return number, right
    return left, right


def _filled(graph: Graph, tensor: int) -> int:
    """`tensor`, or where it is a constant of equal numbers, the same made when it is needed."""
    number = _number_of(graph, tensor)
    if number is None:
        return tensor
    shape = graph.shape(tensor)
    sizes = graph.constant(np.array(shape, np.int32))
    return graph.add("FILL", [sizes, number], shape, options="FillOptions")


def _number_of(graph: Graph, tensor: int) -> int | None:
    """The number that all of a float32 constant are, which has several of them, as a constant."""
    value = graph.value(tensor)
    if value is None or value.size < 2 or not graph.is_float(tensor):
        return None
    first = value.reshape(-1)[0]
    return graph.constant(np.array(first)) if np.all(value == first) else None
