"""The noise has the deviation it says, from the operating system's generator."""

import math
import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from tf_dpfl.protocol import noise
from tf_dpfl.protocol.noise import gaussian_noise, noise_stddev_of_share, noise_stddev_of_sum


def seeded_bytes(seed):
    return np.random.default_rng(seed).bytes


@pytest.mark.parametrize("stddev", [1e-6, 1.0, 300.0])
def test_the_empirical_deviation_is_the_stated_one(stddev):
    n = 400_000
    values = gaussian_noise(n, stddev=stddev).astype(np.float64) / stddev
    # Six standard errors: a correct sampler fails once in 10^8 runs.
    assert abs(values.mean()) < 6 / math.sqrt(n)
    assert abs(values.var() - 1) < 6 * math.sqrt(2 / n)
    assert abs((values**4).mean() - 3) < 6 * math.sqrt(96 / n)


def test_the_distribution_is_normal_and_its_values_independent():
    values = gaussian_noise(200_001, stddev=1.0, random_bytes=seeded_bytes(5)).astype(np.float64)
    assert stats.kstest(values, "norm").pvalue > 1e-4
    half = len(values) // 2  # the two halves of one Box-Muller draw share a radius
    for pair in ((values[:-1], values[1:]), (values[:half], values[half + 1 :])):
        assert abs(np.corrcoef(*pair)[0, 1]) < 6 / math.sqrt(half)
        assert abs(np.corrcoef(*np.square(pair))[0, 1]) < 6 / math.sqrt(half)


def test_each_call_asks_the_operating_system_anew(monkeypatch):
    asked = []

    def spy(count):
        asked.append(count)
        return real(count)

    real = os.urandom
    monkeypatch.setattr(noise.gaussian_noise, "__kwdefaults__", {"random_bytes": spy})
    first, second = gaussian_noise(9, stddev=1.0), gaussian_noise(9, stddev=1.0)
    assert not np.array_equal(first, second)
    # Four draws of five pairs, two 64-bit words each, for either call.
    assert asked == [16 * 5] * 4 * 2


def test_the_default_source_is_the_operating_system():
    assert gaussian_noise.__kwdefaults__["random_bytes"] is os.urandom


def test_numpy_seeds_have_no_say():
    np.random.seed(1)  # noqa: NPY002
    first = gaussian_noise(64, stddev=1.0)
    np.random.seed(1)  # noqa: NPY002
    assert not np.array_equal(first, gaussian_noise(64, stddev=1.0))


def test_injected_bytes_give_the_same_noise():
    first = gaussian_noise(7, stddev=2.0, random_bytes=seeded_bytes(3))
    again = gaussian_noise(7, stddev=2.0, random_bytes=seeded_bytes(3))
    np.testing.assert_array_equal(first, again)


def test_every_value_is_a_sum_of_four_draws():
    """With one draw only, a value would be a scaled Box-Muller value (2112.05307)."""
    raw = [seeded_bytes(seed)(32) for seed in range(4)]
    source = iter(raw)
    values = gaussian_noise(4, stddev=1.0, random_bytes=lambda _: next(source))
    singles = []
    for part in raw:
        words = [int.from_bytes(part[i : i + 8], "little") >> 11 for i in range(0, 32, 8)]
        radii = [math.sqrt(-2 * math.log((w + 1) / 2**53)) for w in words[:2]]
        angles = [2 * math.pi * w / 2**53 for w in words[2:]]
        singles.append(
            [r * math.cos(a) for r, a in zip(radii, angles)]
            + [r * math.sin(a) for r, a in zip(radii, angles)]
        )
    np.testing.assert_allclose(values, np.sum(singles, axis=0) / 2, rtol=1e-6)


@pytest.mark.parametrize("byte", [0x00, 0xFF])
def test_extreme_bytes_give_finite_noise(byte):
    values = gaussian_noise(11, stddev=1e12, random_bytes=lambda n: bytes([byte]) * n)
    assert np.isfinite(values).all()


@given(st.binary(min_size=16, max_size=16))
def test_no_bytes_give_anything_but_finite_noise(raw):
    assert np.isfinite(gaussian_noise(2, stddev=1.0, random_bytes=lambda _: raw)).all()


@pytest.mark.parametrize("size", [0, 1, 2, 3, 1000])
def test_the_shape_is_as_asked(size):
    values = gaussian_noise(size, stddev=1.0)
    assert values.shape == (size,) and values.dtype == np.float32


def test_no_deviation_is_exactly_no_noise_and_asks_for_no_bytes():
    def never(_):
        raise AssertionError

    values = gaussian_noise(5, stddev=0.0, random_bytes=never)
    np.testing.assert_array_equal(values, np.zeros(5, np.float32))


@pytest.mark.parametrize("stddev", [-1.0, math.nan, math.inf])
def test_a_deviation_that_is_none_is_refused(stddev):
    with pytest.raises(ValueError, match="stddev"):
        gaussian_noise(3, stddev=stddev)


@given(
    clip_norm=st.floats(1e-9, 1e12, exclude_max=True),
    noise_multiplier=st.just(0.0) | st.floats(1e-6, 1e6, exclude_max=True),
    smallest_cohort=st.integers(1, 10**6),
)
def test_the_shares_of_the_smallest_cohort_add_up_to_the_noise_of_the_sum(
    clip_norm, noise_multiplier, smallest_cohort
):
    settings = {"clip_norm": clip_norm, "noise_multiplier": noise_multiplier}
    share = noise_stddev_of_share(**settings, smallest_cohort=smallest_cohort)
    total = noise_stddev_of_sum(**settings)
    assert total == clip_norm * noise_multiplier
    assert math.isclose(share * math.sqrt(smallest_cohort), total, rel_tol=1e-12)
    assert math.isfinite(np.float32(share * 20))  # the largest plan allowed fits float32


def test_the_sum_of_drawn_shares_has_the_deviation_of_the_sum():
    settings = {"clip_norm": 0.5, "noise_multiplier": 3.0}
    share = noise_stddev_of_share(**settings, smallest_cohort=30)
    total = np.zeros(50_000)
    for _ in range(30):
        total += gaussian_noise(50_000, stddev=share)
    expected = noise_stddev_of_sum(**settings)
    assert abs(total.var() / expected**2 - 1) < 6 * math.sqrt(2 / 50_000)


@pytest.mark.parametrize(
    "broken",
    [
        {"clip_norm": 0.0},
        {"clip_norm": math.nan},
        {"clip_norm": math.inf},
        {"noise_multiplier": -1.0},
        {"noise_multiplier": math.nan},
        {"noise_multiplier": math.inf},
        {"smallest_cohort": 0},
        {"smallest_cohort": math.nan},
    ],
)
def test_scales_of_nothing_are_refused(broken):
    good = {"clip_norm": 1.0, "noise_multiplier": 1.0, "smallest_cohort": 4}
    with pytest.raises(ValueError, match=next(iter(broken))):
        noise_stddev_of_share(**{**good, **broken})
