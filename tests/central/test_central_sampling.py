"""Poisson sampling: each example's own coin, fresh for every batch."""

import numpy as np
import pytest
from scipy import stats

from tf_dpfl.central.sampling import PoissonSampler


def test_every_example_joins_with_its_probability_and_sizes_are_binomial():
    sampler = PoissonSampler(400, expected=100)
    draws = [sampler.draw() for _ in range(2000)]
    joined = np.bincount(np.concatenate(draws), minlength=400)
    # 2000 coins of 1/4: a deviation of 19.4; the largest of 400 within 5 of them.
    assert np.abs(joined - 500).max() < 5.5 * 19.4
    sizes = np.array([len(draw) for draw in draws])
    assert sizes.mean() == pytest.approx(100, abs=5 * np.sqrt(75 / 2000))
    assert sizes.var() == pytest.approx(75, rel=0.2)  # of a fixed size it would be 0
    assert stats.kstest((sizes - 100 + 0.01) / np.sqrt(75), "norm").statistic < 0.06


def test_coins_of_two_examples_and_of_two_batches_are_independent():
    sampler = PoissonSampler(70_000, expected=35_000)
    first, second = (np.isin(np.arange(70_000), sampler.draw()) for _ in range(2))
    for left, right in ((first, second), (first[:-1], first[1:]), (first[:4464], first[65536:])):
        assert abs(np.corrcoef(left, right)[0, 1]) < 6 / np.sqrt(len(left))


def test_all_examples_join_where_all_are_expected():
    np.testing.assert_array_equal(PoissonSampler(9, expected=9).draw(), np.arange(9))


def test_batches_can_be_empty():
    sampler = PoissonSampler(50, expected=1)
    sizes = [len(sampler.draw()) for _ in range(200)]
    assert min(sizes) == 0 and max(sizes) > 1


def test_coins_come_from_the_given_entropy():
    draws = [PoissonSampler(1000, expected=500, random_bytes=bytes).draw() for _ in range(2)]
    np.testing.assert_array_equal(*draws)
    fresh = PoissonSampler(1000, expected=500)
    assert not np.array_equal(fresh.draw(), fresh.draw())


@pytest.mark.parametrize("expected", [0, 51, -1])
def test_impossible_batches_are_refused(expected):
    with pytest.raises(ValueError, match=rf"batch_size={expected} must be from 1 to .* 50"):
        PoissonSampler(50, expected=expected)
