"""Joining all uses of the same weights, so that the norms of groups add up.

A weight that meets the batch several times (a recurrent kernel, a tied or
shared weight) has one gradient, the sum over its uses; the norm of a sum is not
the sum of norms. So uses of the same entries are joined first, and groups that
are left have no entry in common: only then do squared norms add up.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from tf_dpfl.client_work.per_example.groups import (
    EntryGroup,
    Group,
    ProductGroup,
    group_of_products,
    write_out,
)
from tf_dpfl.client_work.per_example.positions import Positions, signed
from tf_dpfl.client_work.per_example.refusals import refuse
from tf_dpfl.client_work.per_example.sites import Site
from tf_dpfl.client_work.per_example.uses import Entries, Lookups, Products, Use

Joined = list[tuple[Site, Group]]


def join(uses: Sequence[tuple[Site, Use]]) -> Joined:
    """Groups without an entry in common, each with a site that has all its entries.

    Raises:
      NoSoundRuleError: a weight is used in ways that cannot be joined, or an
        entry occurs twice in what one site reads.
    """
    alike: dict[tuple[tuple[int, ...], bytes], list[tuple[Site, Use]]] = {}
    for site, use in uses:
        key = _key(use.positions)
        if isinstance(use, Products) and key not in alike and _key(use.positions.T) in alike:
            use = Products(use.columns, use.rows, use.positions.T)
            key = _key(use.positions)
        alike.setdefault(key, []).append((site, use))
    joined = [(members[0][0], _group([use for _, use in members])) for members in alike.values()]
    shared = _entries_of_several(joined)
    apart = [(s, g) for s, g in joined if not np.isin(np.abs(g.positions), shared).any()]
    if len(apart) < len(joined):
        overlapping = [(s, g) for s, g in joined if np.isin(np.abs(g.positions), shared).any()]
        apart += _add_up(overlapping)
        if len(_entries_of_several(apart)):
            refuse(overlapping[0][0].op, "pieces of one weight that overlap are used")
    for site, group in apart:
        if not group.positions.all():
            refuse(site.op, "the weight is used together with constants in one tensor")
    return apart


def _key(positions: Positions) -> tuple[tuple[int, ...], bytes]:
    return positions.shape, np.ascontiguousarray(positions).tobytes()


def _group(uses: Sequence[Use]) -> Group:
    """One group of uses that have the same positions."""
    entries = [use for use in uses if isinstance(use, Entries)]
    if entries:
        return EntryGroup(tf.add_n([use.values for use in entries]), entries[0].positions)
    return group_of_products(
        [use for use in uses if isinstance(use, Products)],
        [use for use in uses if isinstance(use, Lookups)],
    )


def _entries_of_several(groups: Joined) -> Positions:
    """The numbers of the weights that occur more than once."""
    numbers, counts = np.unique(
        np.abs(np.concatenate([group.positions.reshape(-1) for _, group in groups])),
        return_counts=True,
    )
    return np.asarray(numbers[counts > 1])


def _add_up(overlapping: Joined) -> Joined:
    """One group of entries for all groups of the same entries in any order or form."""
    sums: dict[bytes, tuple[Site, Positions, list[tf.Tensor]]] = {}
    for site, group in overlapping:
        if isinstance(group, ProductGroup):
            group = write_out(group)
        if not isinstance(group, EntryGroup):
            refuse(site.op, "a table is looked up and used in another way that cannot be joined")
        positions = group.positions.reshape(-1)
        order = np.argsort(np.abs(positions))
        entries = np.abs(positions[order])
        flat = tf.reshape(group.values, [group.values.shape[0], len(order)])
        values = signed(tf.gather(flat, order, axis=1), positions[order], entries)
        sums.setdefault(entries.tobytes(), (site, entries, []))[2].append(values)
    return [(site, EntryGroup(tf.add_n(v), entries)) for site, entries, v in sums.values()]
