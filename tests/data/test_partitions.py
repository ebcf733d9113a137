"""Partitions: disjoint, of the sizes asked for, seeded, and skewed as they say."""

from __future__ import annotations

import numpy as np
import pytest

from tf_dpfl.data.partitions import (
    dirichlet,
    iid,
    partition_of_plan,
    partition_sha256,
    shards,
)
from tf_dpfl.protocol.errors import DataError
from tf_dpfl.protocol.plan import plan_from_dict

LABELS = np.random.default_rng(5).permutation(np.repeat(np.arange(10), 100)).astype(np.int32)

KINDS = {
    "iid": lambda labels, **sizes: iid(labels, **sizes),
    "dirichlet": lambda labels, **sizes: dirichlet(labels, alpha=0.3, **sizes),
    "tiny_alpha": lambda labels, **sizes: dirichlet(labels, alpha=1e-300, **sizes),
    "smallest_alpha": lambda labels, **sizes: dirichlet(labels, alpha=5e-324, **sizes),
    "largest_alpha": lambda labels, **sizes: dirichlet(labels, alpha=1.7e308, **sizes),
    "huge_alpha": lambda labels, **sizes: dirichlet(labels, alpha=1e6, **sizes),
    "shards": lambda labels, **sizes: shards(labels, shards_per_client=2, **sizes),
}


def classes_of(parts) -> np.ndarray:
    return np.array([len(np.unique(LABELS[part])) for part in parts])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("population", "examples"), [(1, 2), (7, 20), (50, 20), (1, 1000), (500, 2)]
)
def test_no_example_belongs_to_two_clients_and_sizes_are_as_asked(kind, population, examples):
    parts = KINDS[kind](LABELS, population=population, examples_per_client=examples, seed=3)
    assert [len(part) for part in parts] == [examples] * population
    everything = np.concatenate(parts)
    assert len(np.unique(everything)) == len(everything)
    assert everything.min() >= 0
    assert everything.max() < len(LABELS)


@pytest.mark.parametrize("kind", KINDS)
def test_the_seed_decides_and_nothing_else(kind):
    def digest(seed: int) -> str:
        np.random.seed(seed + 17)  # noqa: NPY002  global state must not matter
        return partition_sha256(
            KINDS[kind](LABELS, population=20, examples_per_client=20, seed=seed)
        )

    assert digest(1) == digest(1)
    assert digest(1) != digest(2)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("population", "examples"), [(51, 20), (1, 1001), (1001, 1)])
def test_more_examples_than_the_source_has_are_refused(kind, population, examples):
    with pytest.raises(DataError, match=r"needs \d+ examples, the source has 1000"):
        KINDS[kind](LABELS, population=population, examples_per_client=examples, seed=0)
    with pytest.raises(DataError, match="the source has 0"):
        KINDS[kind](LABELS[:0], population=1, examples_per_client=1, seed=0)


def test_iid_clients_have_the_sources_mix():
    parts = iid(LABELS, population=10, examples_per_client=100, seed=0)
    mix = np.array([np.bincount(LABELS[part], minlength=10) for part in parts])
    # Hypergeometric: variance n/10 * 9/10 * (1000-100)/999, about 8.1 = 2.85^2.
    assert abs(mix - 10).max() < 5 * 2.85


def test_small_alpha_gives_one_class_and_large_alpha_gives_all():
    one = dirichlet(LABELS, population=5, examples_per_client=10, alpha=1e-3, seed=0)
    many = dirichlet(LABELS, population=5, examples_per_client=100, alpha=1e4, seed=0)
    assert (classes_of(one) == 1).all()
    assert (classes_of(many) == 10).all()


def test_dirichlet_shares_have_the_distributions_second_moment():
    # For a symmetric Dirichlet E[sum p_k^2] = (alpha + 1) / (K alpha + 1); of two
    # draws with replacement that is the chance of one class.
    labels = np.repeat(np.arange(4), 50_000)
    parts = dirichlet(labels, population=4000, examples_per_client=2, alpha=0.5, seed=1)
    same = np.mean([labels[part[0]] == labels[part[1]] for part in parts])
    assert abs(same - 1.5 / 3.0) < 4 * np.sqrt(0.25 / 4000)


def test_shards_give_few_classes_to_a_client():
    parts = shards(LABELS, population=50, examples_per_client=20, shards_per_client=2, seed=0)
    # 100 shards of 10 cut the 10 x 100 sorted labels exactly: one class each.
    assert classes_of(parts).max() == 2
    assert len(np.unique(np.concatenate(parts))) == 1000


def test_shards_are_mixed_inside_a_client():
    parts = shards(LABELS, population=10, examples_per_client=100, shards_per_client=2, seed=0)
    assert any((np.diff(LABELS[part]) != 0).sum() > 10 for part in parts)


def test_shards_leave_out_a_remainder_and_refuse_empty_shards():
    parts = shards(LABELS, population=4, examples_per_client=7, shards_per_client=3, seed=0)
    assert [len(part) for part in parts] == [6] * 4
    with pytest.raises(DataError, match="a shard would be empty"):
        shards(LABELS, population=4, examples_per_client=2, shards_per_client=3, seed=0)


def test_digest_tells_who_has_what():
    a, b = np.array([1, 2]), np.array([3])
    digests = {
        partition_sha256(parts)
        for parts in ([a, b], [b, a], [a[::-1], b], [np.array([1, 2, 3])], [])
    }
    assert len(digests) == 5


@pytest.mark.parametrize("kind", ["iid", "dirichlet", "shards"])
def test_the_plan_names_the_partition(kind):
    tree = {
        "version": 1,
        "task": {"model": "linear"},
        "data": {"source": "digits", "partition": kind, "partition_seed": 9},
        "clients": {
            "population": 20,
            "clients_per_round": 5,
            "examples_per_client": 10,
            "sampling": "fixed",
        },
        "local_training": {"epochs": 1, "batch_size": 5, "learning_rate": 0.1},
        "privacy": {
            "clip_norm": 1.0,
            "delta": 1e-3,
            "smallest_cohort": 2,
            "noise_multiplier": 1.0,
        },
        "server": {"rounds": 1},
    }
    expected = KINDS[kind](LABELS, population=20, examples_per_client=10, seed=9)
    found = partition_of_plan(LABELS, plan_from_dict(tree))
    assert partition_sha256(found) == partition_sha256(expected)
