"""Updates as integers: the sum comes back, the sensitivity holds for every input."""

import math
from dataclasses import replace

import numpy as np
import pytest

from tf_dpfl.protocol.clipping import clip_by_global_norm
from tf_dpfl.protocol.integer_noise import skellam_noise
from tf_dpfl.protocol.integer_sums import (
    IntegerSum,
    rotate,
    rotate_back,
    round_within,
    rounded_squared_norm,
)

SUM = IntegerSum(size=100, clip_norm=1.0, scale=500.0, bits=24, rotation_seed=b"round 1")
NO_NOISE = np.zeros(128, np.int64)


def signed(encoded, bits=24):
    half = 1 << (bits - 1)
    return (encoded + half) % (1 << bits) - half


def test_the_sum_of_clipped_updates_comes_back_up_to_rounding():
    rng = np.random.default_rng(0)
    updates = [rng.normal(size=100).astype(np.float32) * 10.0**e for e in (-3, -1, 0, 2)]
    total = NO_NOISE
    for update in updates:
        total = SUM.add(total, SUM.encode(update, noise=NO_NOISE))
    expected = sum(clip_by_global_norm(update, clip_norm=1.0) for update in updates)
    error = SUM.decode(total) - expected
    # Four roundings of variance at most 1/4 in integers.
    assert np.abs(error).max() < 5.5 * math.sqrt(4 / 4) / SUM.scale
    assert np.linalg.norm(expected) > 1


def test_rounding_is_without_bias_where_nothing_is_thrown_away():
    plain = replace(SUM, beta=0.0)
    update = np.random.default_rng(1).normal(size=100).astype(np.float32)
    runs = [plain.decode(plain.encode(update, noise=NO_NOISE)) for _ in range(2000)]
    expected = clip_by_global_norm(update, clip_norm=1.0)
    deviation = 0.5 / SUM.scale / math.sqrt(2000)
    assert np.abs(np.mean(runs, axis=0) - expected).max() < 5.5 * deviation


@pytest.mark.parametrize("beta", [0.0, math.exp(-0.5), 0.999])
@pytest.mark.parametrize("scale", [0.01, 1.0, 40.0])
def test_no_client_has_more_influence_than_the_sensitivities_say(scale, beta):
    small = replace(SUM, scale=scale, beta=beta)
    rng = np.random.default_rng(2)
    updates = [rng.normal(size=100).astype(np.float32) * 1e6 for _ in range(20)]
    # The worst: a direction that the rotation turns into one large entry, and into equal ones.
    updates += [rotate_back(row, size=100, seed=b"round 1") for row in 1e3 * np.eye(128)[:3]]
    updates += [rotate_back(np.ones(128) * 1e3, size=100, seed=b"round 1")]
    norms = []
    for update in updates:
        integers = signed(small.encode(update.astype(np.float32), noise=NO_NOISE)).astype(float)
        norms.append(np.linalg.norm(integers))
        assert norms[-1] <= small.l2_sensitivity
        assert np.abs(integers).sum() <= small.l1_sensitivity
    if scale == 40.0:
        assert max(norms) > 0.9 * scale  # the bound is not met by sending nothing


def test_without_conditional_rounding_the_smaller_bound_does_not_hold():
    """The test above can fail: rounding once breaks the bound in a part of the tries."""
    values = np.full(128, 0.5)
    bound = math.sqrt(rounded_squared_norm(math.sqrt(32.0), size=128, beta=0.999))
    once = [round_within(values, norm=math.inf) for _ in range(200)]
    assert any(np.linalg.norm(rounded) > bound for rounded in once)
    assert all(np.linalg.norm(round_within(values, norm=bound)) <= bound for _ in range(200))


def test_a_bound_that_cannot_be_met_by_chance_is_met_towards_zero():
    values = np.full(4096, 0.5)
    assert np.linalg.norm(round_within(values, norm=10.0)) <= 10.0


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e38])
def test_a_broken_update_counts_as_zero(value):
    update = np.ones(100, np.float32)
    update[7] = value
    assert not SUM.decode(SUM.encode(update, noise=NO_NOISE)).any()


def test_rotation_keeps_the_norm_spreads_one_entry_and_is_undone():
    values = np.zeros(100)
    values[3] = 2.0
    turned = rotate(values, padded=128, seed=b"a")
    np.testing.assert_allclose(np.abs(turned), 2.0 / math.sqrt(128), rtol=1e-12)
    np.testing.assert_allclose(rotate_back(turned, size=100, seed=b"a"), values, atol=1e-12)
    values = np.arange(100.0)
    turned = [rotate(values, padded=128, seed=seed) for seed in (b"a", b"b")]
    assert not np.allclose(*turned)


def test_every_value_on_the_wire_is_of_the_ring_and_wrapping_is_linear():
    small = replace(SUM, bits=12)
    rng = np.random.default_rng(3)
    noise = [skellam_noise(128, variance=1e5) for _ in range(5)]
    parts = [small.encode(rng.normal(size=100).astype(np.float32), noise=n) for n in noise]
    total = NO_NOISE
    for part in parts:
        assert part.min() >= 0 and part.max() < 1 << 12
        total = small.add(total, part)
    np.testing.assert_array_equal(total, np.sum(parts, axis=0) % (1 << 12))


def test_noise_arrives_in_the_units_of_the_update():
    noise = skellam_noise(128, variance=4e6)
    quiet, loud = (SUM.encode(np.zeros(100, np.float32), noise=n) for n in (NO_NOISE, noise))
    assert not SUM.decode(quiet).any()
    expected = rotate_back(noise / SUM.scale, size=100, seed=b"round 1")
    np.testing.assert_allclose(SUM.decode(loud), expected, rtol=1e-5)
    assert SUM.decode(loud).std() == pytest.approx(2000 / 500, rel=0.3)


def test_wrapping_deviations_foretell_when_a_sum_wraps():
    enough = replace(SUM, bits=16)
    assert enough.wrapping_deviations(clients=10, noise_variance=1e4) > 10
    update = np.ones(100, np.float32)
    for bits, wraps in ((16, False), (9, True)):
        ring = replace(SUM, bits=bits)
        total = NO_NOISE
        for _ in range(10):
            total = ring.add(total, ring.encode(update, noise=NO_NOISE))
        assert (ring.wrapping_deviations(clients=10, noise_variance=0.0) < 2) == wraps
        assert (np.abs(ring.decode(total) - 1.0).max() > 0.1) == wraps


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"size": 0}, "size=0"),
        ({"clip_norm": math.nan}, "clip_norm"),
        ({"scale": 0.0}, "scale"),
        ({"scale": 2e9}, r"below 2\^30"),
        ({"bits": 63}, "bits=63"),
        ({"beta": 1.0}, "beta=1.0"),
        ({"beta": math.nan}, "beta=nan"),
    ],
)
def test_values_out_of_range_are_refused(change, says):
    with pytest.raises(ValueError, match=says):
        replace(SUM, **change)


def test_other_shapes_are_refused():
    with pytest.raises(ValueError, match=r"update \(99,\)"):
        SUM.encode(np.zeros(99, np.float32), noise=NO_NOISE)
    with pytest.raises(ValueError, match=r"noise \(100,\)"):
        SUM.encode(np.zeros(100, np.float32), noise=np.zeros(100, np.int64))
    with pytest.raises(ValueError, match=r"total \(100,\)"):
        SUM.decode(np.zeros(100, np.int64))
