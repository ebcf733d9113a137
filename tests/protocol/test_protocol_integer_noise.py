"""Integer noise: its distribution against SciPy and the definition, its entropy, its edges."""

import math

import numpy as np
import pytest
from scipy import stats

from tf_dpfl.protocol.errors import StateError
from tf_dpfl.protocol.integer_noise import (
    _gaussian_table,
    _poisson_table,
    discrete_gaussian_noise,
    skellam_noise,
)


def cumulative(table):
    """{value: probability that a draw is at most that}, float64."""
    bounds = table.upper.astype(np.float64) * 2.0**-64 + table.lower.astype(np.float64) * 2.0**-128
    return np.arange(table.first, table.first + len(bounds)), bounds


@pytest.mark.parametrize("mean", [1e-9, 0.3, 1.0, 2.5, 40.0, 12345.678, 2e6])
def test_poisson_table_is_the_cumulative_distribution(mean):
    values, bounds = cumulative(_poisson_table(mean))
    np.testing.assert_allclose(bounds, stats.poisson.cdf(values, mean), rtol=5e-9, atol=1e-14)
    assert stats.poisson.sf(values[-1] + 1, mean) < 1e-40


@pytest.mark.parametrize("stddev", [0.125, 0.5, 1.0, 3.7, 250.0])
def test_gaussian_table_is_the_cumulative_distribution(stddev):
    values, bounds = cumulative(_gaussian_table(stddev))
    support = np.arange(values[0], -values[0] + 1)
    weights = np.exp(-(support.astype(float) ** 2) / (2 * stddev**2))
    expected = np.cumsum(weights)[:-1] / weights.sum()
    np.testing.assert_allclose(bounds, expected, rtol=1e-9, atol=1e-15)


def bins_of(expected, size):
    """Slices of a sorted support with at least 50 expected draws each."""
    edges, filled = [0], 0.0
    for index, probability in enumerate(expected):
        filled += probability * size
        if filled >= 50:
            edges.append(index + 1)
            filled = 0.0
    edges[-1] = len(expected)
    return edges


@pytest.mark.parametrize(
    ("draw", "pmf"),
    [
        (
            lambda n: skellam_noise(n, variance=5.0),
            lambda k: stats.skellam.pmf(k, 2.5, 2.5),
        ),
        (
            lambda n: discrete_gaussian_noise(n, stddev=2.0),
            lambda k: np.exp(-(k.astype(float) ** 2) / 8) / (2 * math.sqrt(2 * math.pi)),
        ),
    ],
    ids=["skellam", "discrete gaussian"],
)
def test_draws_follow_the_distribution(draw, pmf):
    size, support = 400_000, np.arange(-40, 41)
    found = draw(size)
    assert found.dtype == np.int64 and found.shape == (size,)
    counts = np.bincount(found + 40, minlength=81)
    expected = pmf(support)
    edges = bins_of(expected, size)
    seen = np.add.reduceat(counts, edges[:-1])
    wanted = np.add.reduceat(expected, edges[:-1])
    wanted = wanted / wanted.sum() * size
    assert len(seen) > 10
    assert stats.chisquare(seen, wanted).pvalue > 1e-9


def test_skellam_shares_add_up_to_skellam_of_the_summed_variance():
    total = sum(skellam_noise(200_000, variance=0.7) for _ in range(10))
    assert total.var() == pytest.approx(7.0, rel=0.03)
    seen = np.array([(total == k).sum() for k in range(-6, 7)])
    expected = 200_000 * stats.skellam.pmf(np.arange(-6, 7), 3.5, 3.5)
    assert np.all(np.abs(seen - expected) < 6.5 * np.sqrt(expected))


def test_all_128_bits_decide():
    """Between the first 64 bits of two numbers that differ in the last 64 lies a boundary."""
    table = _poisson_table(3.0)
    place = 4
    bound = (int(table.upper[place]) << 64) + int(table.lower[place])

    def value_of(number):
        from tf_dpfl.protocol import integer_noise

        words = [np.uint64(number >> 64), np.uint64(number & (2**64 - 1))]
        stream = np.array(words, np.uint64).tobytes()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(integer_noise, "fresh_key_stream", lambda _: lambda _: stream)
            return int(integer_noise._draw(table, 1, bytes)[0])

    assert value_of(bound - 1) == table.first + place
    assert value_of(bound) == table.first + place + 1


def test_no_two_calls_draw_the_same_and_the_key_decides():
    assert not np.array_equal(skellam_noise(64, variance=1e4), skellam_noise(64, variance=1e4))
    fixed = [discrete_gaussian_noise(64, stddev=99.0, random_bytes=bytes) for _ in range(2)]
    np.testing.assert_array_equal(*fixed)
    with pytest.raises(StateError, match="source of entropy gave 5 bytes"):
        skellam_noise(3, variance=1.0, random_bytes=lambda _: b"short")


@pytest.mark.parametrize("variance", [-1.0, math.nan, math.inf, 1.1e9])
def test_variances_out_of_range_are_refused(variance):
    with pytest.raises(ValueError, match="variance"):
        skellam_noise(3, variance=variance)


@pytest.mark.parametrize("stddev", [-1.0, 0.1, math.nan, math.inf, 4e4])
def test_deviations_out_of_range_are_refused(stddev):
    with pytest.raises(ValueError, match=r"stddev|variance"):
        discrete_gaussian_noise(3, stddev=stddev)


def test_no_noise_and_next_to_none_are_zeros():
    for noise in (
        skellam_noise(5, variance=0.0),
        skellam_noise(5, variance=1e-60),
        discrete_gaussian_noise(5, stddev=0.0),
    ):
        np.testing.assert_array_equal(noise, np.zeros(5, np.int64))
    assert skellam_noise(0, variance=1.0).shape == (0,)
