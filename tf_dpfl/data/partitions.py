"""Which example belongs to which client: seeded partitions of a labelled source.

Formal guarantees of every partition:
  * no example belongs to two clients;
  * the result has `population` clients, each with 1 to `examples_per_client`
    examples, in random order (local training goes through them as stored);
  * it depends on labels, sizes and seed alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tf_dpfl.protocol.errors import DataError
from tf_dpfl.protocol.plan import Plan

Indices = NDArray[np.int64]
Labels = NDArray[np.integer[Any]]


def partition_of_plan(labels: Labels, plan: Plan) -> list[Indices]:
    """The partition that `plan.data` names, over `plan.clients`.

    Args:
      labels: integer [n], the class of each example of the source.
      plan: `partition` must be "iid", "dirichlet" or "shards".

    Returns:
      One int64 array of indices into `labels` for each client.

    Raises:
      DataError: the source is too small, or a shard would be empty.
    """
    data, clients = plan.data, plan.clients
    sizes = {
        "population": clients.population,
        "examples_per_client": clients.examples_per_client,
        "seed": data.partition_seed,
    }
    if data.partition == "iid":
        return iid(labels, **sizes)
    if data.partition == "dirichlet":
        return dirichlet(labels, alpha=data.dirichlet_alpha, **sizes)
    if data.partition == "shards":
        return shards(labels, shards_per_client=data.shards_per_client, **sizes)
    raise DataError(f'data.partition="{data.partition}" does not split a source over clients')


def iid(labels: Labels, *, population: int, examples_per_client: int, seed: int) -> list[Indices]:
    """Every client draws uniformly from the whole source, without replacement."""
    _check_size(labels, population=population, examples_per_client=examples_per_client)
    order = np.random.default_rng(seed).permutation(len(labels))
    return list(order[: population * examples_per_client].reshape(population, -1))


def dirichlet(
    labels: Labels, *, population: int, examples_per_client: int, alpha: float, seed: int
) -> list[Indices]:
    """Each client's classes follow its own draw from a symmetric Dirichlet.

    `alpha` > 0 is the concentration of every single class: towards 0 a client
    has one class, towards infinity all classes evenly. A class that runs out is
    left out and the others' shares are scaled up. Source: Hsu et al. 2019
    (1909.06335), section 3, with alpha p written as one number for each class.
    """
    _check_size(labels, population=population, examples_per_client=examples_per_client)
    rng = np.random.default_rng(seed)
    classes = np.unique(labels)
    pools = [rng.permutation(np.flatnonzero(labels == label)) for label in classes]
    left = np.array([len(pool) for pool in pools])
    result = []
    for _ in range(population):
        share = _dirichlet_share(rng, alpha=alpha, classes=len(classes))
        taken: list[Indices] = []
        missing = examples_per_client
        while missing:
            weights = np.where(left > 0, share, 0.0)
            if not weights.sum() > 0:  # the classes this client leans to are gone
                weights = left.astype(float)
            wanted = rng.multinomial(missing, weights / weights.sum())
            for k, count in enumerate(np.minimum(wanted, left)):
                taken.append(pools[k][left[k] - count : left[k]])
                left[k] -= count
                missing -= int(count)
        result.append(rng.permutation(np.concatenate(taken)))
    return result


def _dirichlet_share(
    rng: np.random.Generator, *, alpha: float, classes: int
) -> NDArray[np.float64]:
    """One draw from the symmetric Dirichlet, [classes].

    In logarithms, since NumPy's own never returns for an alpha of 1e-300: a
    Gamma(alpha) is a Gamma(alpha + 1) times U^(1/alpha) (Marsaglia & Tsang 2000).
    """
    # Below 1e-300 the quotient would overflow; one class has it all long before.
    exponents = rng.standard_exponential(classes) / max(alpha, 1e-300)
    logs = np.log(rng.standard_gamma(alpha + 1.0, classes)) - exponents
    share = np.exp(logs - logs.max())
    return share / share.sum()


def shards(
    labels: Labels,
    *,
    population: int,
    examples_per_client: int,
    shards_per_client: int,
    seed: int,
) -> list[Indices]:
    """Each client gets a few contiguous pieces of the source sorted by label.

    All pieces have examples_per_client // shards_per_client examples, so that a
    client has at most about `shards_per_client` classes; a remainder is left
    out. Source: McMahan et al. 2017 (1602.05629), section 3 ("pathological
    non-IID").
    """
    _check_size(labels, population=population, examples_per_client=examples_per_client)
    shard_size = examples_per_client // shards_per_client
    if not shard_size >= 1:
        raise DataError(
            f"data.shards_per_client={shards_per_client} must be at most "
            f"clients.examples_per_client={examples_per_client}: a shard would be empty"
        )
    rng = np.random.default_rng(seed)
    pieces = population * shards_per_client
    chosen = rng.permutation(len(labels))[: pieces * shard_size]
    by_label = chosen[np.argsort(labels[chosen], kind="stable")].reshape(pieces, shard_size)
    dealt = by_label[rng.permutation(pieces)].reshape(population, -1)
    return [rng.permutation(row) for row in dealt]


def partition_sha256(parts: Sequence[Indices]) -> str:
    """SHA-256 (hex) over who has which examples in which order."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(np.ascontiguousarray(part, dtype="<i8").tobytes())
    return digest.hexdigest()


def _check_size(labels: Labels, *, population: int, examples_per_client: int) -> None:
    needed = population * examples_per_client
    if not 1 <= needed <= len(labels):
        raise DataError(
            f"clients.population={population} times clients.examples_per_client="
            f"{examples_per_client} needs {needed} examples, the source has {len(labels)}: "
            "no example may belong to two clients; lower one of them"
        )
