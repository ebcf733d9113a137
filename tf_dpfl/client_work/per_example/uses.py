"""What a site says about every example's gradient, and the registry of the rules."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from tf_dpfl.client_work.per_example.positions import Positions
from tf_dpfl.client_work.per_example.refusals import refuse
from tf_dpfl.client_work.per_example.sites import Site


@dataclass(frozen=True)
class Products:
    """Example b's gradient is the matrix sum over t of rows[b, t, :]^T columns[b, t, :].

    `rows` float32 [B, T, p], `columns` float32 [B, T, q]; `positions` [p, q].
    """

    rows: tf.Tensor
    columns: tf.Tensor
    positions: Positions


@dataclass(frozen=True)
class Lookups:
    """As `Products`, where rows[b, t, :] is 1 at ids[b, t] and 0 elsewhere.

    `ids` int32 [B, T], `columns` float32 [B, T, q], or [B, 1, q] where they are the same
    for all t; `positions` [p, q].
    """

    ids: tf.Tensor
    columns: tf.Tensor
    positions: Positions


@dataclass(frozen=True)
class Entries:
    """Example b's gradient itself: `values` float32 [B, n]; `positions` has n entries."""

    values: tf.Tensor
    positions: Positions


Use = Products | Lookups | Entries
Rule = Callable[[Site, tf.Tensor], "Use"]

_rules: dict[tuple[str, int], Rule] = {}


def use_of(op_type: str, *indices: int) -> Callable[[Rule], Rule]:
    """Registers a rule for weights at the inputs `indices` of ops of type `op_type`.

    The rule gets the site and the gradient of the summed losses with respect to
    the op's output; it calls `refuse` in cases that it does not cover.
    """

    def register(rule: Rule) -> Rule:
        for index in indices:
            if (op_type, index) in _rules:
                raise KeyError(f"{op_type} has a rule for input {index} already")
            _rules[op_type, index] = rule
        return rule

    return register


def use_at(site: Site, grad: Any) -> Use:
    """What the rule of the site says, given the gradient of its op's output.

    Raises NoSoundRuleError where there is no rule, or none for this case.
    """
    rule = _rules.get((site.op.type, site.index))
    if rule is None:
        refuse(site.op, f"there is no rule for a weight as its input {site.index}")
    return rule(site, grad)
