"""The noise has the deviation it says, from the operating system's generator."""

import math
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from tf_dpfl.protocol import noise
from tf_dpfl.protocol.errors import StateError
from tf_dpfl.protocol.noise import (
    fill_with_noise,
    gaussian_noise,
    noise_stddev_of_share,
    noise_stddev_of_sum,
    uniforms,
)


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
    # Cosine and sine of one draw share a radius; they lie half a chunk apart.
    for lag in (1, noise._CHUNK // 2, noise._CHUNK):
        pair = (values[:-lag], values[lag:])
        assert abs(np.corrcoef(*pair)[0, 1]) < 6 / math.sqrt(len(values) - lag)
        assert abs(np.corrcoef(*np.square(pair))[0, 1]) < 6 / math.sqrt(len(values) - lag)


def test_the_tails_are_those_of_a_normal():
    n = 1_000_000
    values = np.abs(gaussian_noise(n, stddev=1.0))
    for bound in (2.0, 3.0, 4.0):
        expected = n * math.erfc(bound / math.sqrt(2))
        assert abs((values > bound).sum() - expected) < 6 * math.sqrt(expected)


def test_each_call_asks_the_operating_system_anew(monkeypatch):
    asked = []

    def spy(count):
        asked.append(count)
        return real(count)

    real = os.urandom
    monkeypatch.setattr(noise.gaussian_noise, "__kwdefaults__", {"random_bytes": spy})
    first, second = gaussian_noise(9, stddev=1.0), gaussian_noise(9, stddev=1.0)
    assert not np.array_equal(first, second)
    assert asked == [32, 32]  # one key of 256 bits each


def test_the_default_source_is_the_operating_system():
    assert gaussian_noise.__kwdefaults__["random_bytes"] is os.urandom


def test_numpy_seeds_have_no_say():
    np.random.seed(1)  # noqa: NPY002
    first = gaussian_noise(64, stddev=1.0)
    np.random.seed(1)  # noqa: NPY002
    assert not np.array_equal(first, gaussian_noise(64, stddev=1.0))


@pytest.mark.parametrize("shapes", [[(9000,)], [(3, 1365), (), (2, 1, 5), (0,), (4900,)]])
def test_parts_are_filled_with_what_one_vector_would_get(shapes):
    """Across the boundaries of chunks and parts; every value once."""
    parts = [np.full(shape, np.nan, np.float32) for shape in shapes]
    fill_with_noise(parts, stddev=2.0, random_bytes=seeded_bytes(3))
    whole = gaussian_noise(sum(map(np.size, parts)), stddev=2.0, random_bytes=seeded_bytes(3))
    np.testing.assert_array_equal(np.concatenate([part.ravel() for part in parts]), whole)
    fill_with_noise(parts, stddev=0.0)
    assert not any(part.any() for part in parts)


def test_a_part_that_would_have_to_be_copied_is_refused():
    """A copy would be filled in its place, and the part go out without noise."""
    part = np.zeros((4, 6), np.float32)[:, :4]
    with pytest.raises(ValueError, match="contiguous"):
        fill_with_noise([part], stddev=1.0)
    assert not part.any()


def test_injected_bytes_give_the_same_noise():
    first = gaussian_noise(7, stddev=2.0, random_bytes=seeded_bytes(3))
    again = gaussian_noise(7, stddev=2.0, random_bytes=seeded_bytes(3))
    np.testing.assert_array_equal(first, again)


def rfc_8439_key_stream(key, count):
    """ChaCha20 with counter and nonce of zero, written from RFC 8439, section 2.3."""

    def quarter(s, a, b, c, d):
        for x, y, z, turn in ((a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)):
            s[x] = (s[x] + s[y]) & 0xFFFFFFFF
            s[z] ^= s[x]
            s[z] = (s[z] << turn | s[z] >> (32 - turn)) & 0xFFFFFFFF

    columns = [(i, i + 4, i + 8, i + 12) for i in range(4)]
    diagonals = [(0, 5, 10, 15), (1, 6, 11, 12), (2, 7, 8, 13), (3, 4, 9, 14)]
    constant = np.frombuffer(b"expand 32-byte k", "<u4").tolist()
    stream = b""
    for counter in range(-(-count // 64)):
        first = constant + np.frombuffer(key, "<u4").tolist() + [counter, 0, 0, 0]
        state = list(first)
        for _ in range(10):
            for four in columns + diagonals:
                quarter(state, *four)
        words = [(a + b) & 0xFFFFFFFF for a, b in zip(state, first)]
        stream += np.array(words, "<u4").tobytes()
    return stream[:count]


def test_every_value_is_a_sum_of_four_draws():
    """With one draw only, a value would be a scaled Box-Muller value (2112.05307)."""
    key = bytes(range(32))
    values = gaussian_noise(4, stddev=1.0, random_bytes=lambda _: key)
    stream = rfc_8439_key_stream(key, 4 * 32)
    words = [int.from_bytes(stream[i : i + 8], "little") >> 11 for i in range(0, 128, 8)]
    radii = [math.sqrt(-2 * math.log((w + 1) / 2**53)) for w in words[:8]]
    angles = [2 * math.pi * (w / 2**53 - 0.5) for w in words[8:]]
    cosines = [r * math.cos(a) for r, a in zip(radii, angles)]
    sines = [r * math.sin(a) for r, a in zip(radii, angles)]
    # Draw i makes the pair (cosines, sines)[2 i : 2 i + 2].
    expected = [sum(part[k::2]) / 2 for part in (cosines, sines) for k in (0, 1)]
    np.testing.assert_allclose(values, expected, rtol=1e-6)


@pytest.mark.parametrize("byte", [0x00, 0x7F, 0x80, 0xFF])
def test_extreme_words_give_finite_draws(byte):
    words = np.frombuffer(bytes([byte]) * 32, np.uint64).reshape(2, 2)
    assert np.isfinite(noise._box_muller(words, np.full((3, 2), np.nan))).all()


@given(st.binary(min_size=16, max_size=16))
def test_no_words_give_anything_but_finite_normals_of_their_radius(raw):
    words = np.frombuffer(raw, np.uint64).reshape(2, 1)
    draws = noise._box_muller(words, np.full((3, 1), np.nan))
    radius = math.sqrt(-2 * math.log(((int(words[0, 0]) >> 11) + 1) / 2**53))
    np.testing.assert_allclose(np.hypot(*draws), radius, rtol=1e-12)


def test_threads_never_share_a_stream():
    with ThreadPoolExecutor(8) as pool:
        drawn = list(pool.map(lambda _: gaussian_noise(50, stddev=1.0), range(200)))
    assert len({values.tobytes() for values in drawn}) == 200


def test_a_fork_never_repeats_its_parents_stream():
    gaussian_noise(8, stddev=1.0)  # whatever a generator would keep is there before the fork
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writing, gaussian_noise(64, stddev=1.0).tobytes())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        childs = np.frombuffer(pipe.read(), np.float32)
    os.waitpid(child, 0)
    own = gaussian_noise(64, stddev=1.0)
    assert len(childs) == 64 and not set(own) & set(childs)


@pytest.mark.parametrize(
    "draw",
    [
        lambda source: gaussian_noise(3, stddev=1.0, random_bytes=source),
        lambda source: uniforms(3, source),
    ],
)
def test_failing_entropy_raises_and_makes_no_noise(draw):
    def none(_):
        raise OSError("no entropy")

    with pytest.raises(OSError, match="no entropy"):
        draw(none)
    with pytest.raises(StateError, match="gave 16 bytes instead of 32"):
        draw(lambda _: bytes(16))


def test_uniforms_are_uniform_below_one_and_new_each_time():
    n = 200_000
    values = uniforms(n)
    assert values.dtype == np.float32 and values.shape == (n,)
    assert values.min() >= 0 and values.max() < 1
    assert stats.kstest(values.astype(np.float64), "uniform").pvalue > 1e-6
    assert abs(np.corrcoef(values[:-1], values[1:])[0, 1]) < 6 / math.sqrt(n)
    assert not np.array_equal(values, uniforms(n))
    assert uniforms(0).shape == (0,)


@pytest.mark.parametrize("size", [0, 1, 2, 3, 1000, 4095, 4096, 4097])
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
