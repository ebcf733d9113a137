"""The integer sum beside TFF's own aggregator: same parameters, sums and noise.

`DistributedDpSumFactory` is what `tff.learning.ddp_secure_aggregator` is built on.
"""

import functools
import math

import numpy as np
import pytest
import tensorflow_federated as tff
from tensorflow_federated.python.aggregators import distributed_dp

from tf_dpfl.protocol.clipping import clip_by_global_norm
from tf_dpfl.protocol.integer_noise import discrete_gaussian_noise, skellam_noise
from tf_dpfl.protocol.integer_sums import IntegerSum, fitting_scale
from tf_dpfl.simulation.runtime import tff_runtime

SIZE, CLIENTS, BITS, CLIP_NORM, DEVIATIONS = 1000, 10, 18, 0.5, 3.8905918864131


@pytest.fixture(scope="module", autouse=True)
def runtime():
    with tff_runtime():
        yield


def updates():
    rng = np.random.default_rng(0)
    return [(rng.normal(size=SIZE) * 10.0**-e).astype(np.float32) for e in range(CLIENTS)]


@functools.cache
def sum_of_tff(noise_multiplier, mechanism):
    factory = distributed_dp.DistributedDpSumFactory(
        noise_multiplier=noise_multiplier,
        expected_clients_per_round=CLIENTS,
        bits=BITS,
        l2_clip=CLIP_NORM,
        beta=0.0,
        mechanism=mechanism,
        rotation_type="hd",
    )
    process = factory.create(tff.TensorType(np.float32, [SIZE]))
    # No secure sum runs on one machine: TFF's own test backend puts plain ones in their place.
    next_fn = tff.backends.test.replace_secure_intrinsics_with_bodies(process.next)
    output = next_fn(process.initialize(), updates())
    return np.asarray(output["result"]), output["measurements"]


def our_sum(noise_multiplier, mechanism):
    stddev = noise_multiplier * CLIP_NORM
    scale = fitting_scale(
        size=SIZE,
        clip_norm=CLIP_NORM,
        bits=BITS,
        clients=CLIENTS,
        noise_stddev=stddev,
        deviations=DEVIATIONS,
    )
    ring = IntegerSum(SIZE, CLIP_NORM, scale, BITS, rotation_seed=b"round 1", beta=0.0)
    share = (stddev * scale) ** 2 / CLIENTS
    total = np.zeros(ring.padded, np.int64)
    for update in updates():
        if mechanism == "distributed_skellam":
            noise = skellam_noise(ring.padded, variance=share)
        else:
            noise = discrete_gaussian_noise(ring.padded, stddev=math.sqrt(share))
        total = ring.add(total, ring.encode(update, noise=noise))
    return ring.decode(total), ring


MECHANISMS = ["distributed_skellam", "distributed_dgauss"]


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_scale_and_sensitivity_are_those_of_tff(mechanism):
    _, measured = sum_of_tff(2.0, mechanism)
    _, ring = our_sum(2.0, mechanism)
    assert ring.scale == pytest.approx(float(measured["scale_factor"]), rel=1e-5)
    assert ring.padded == int(measured["padded_dim"])
    # TFF adds a leeway of 1e-5 of the update's units.
    leeway = 1e-5 * ring.scale
    theirs = float(measured["scaled_inflated_l2"])
    assert ring.l2_sensitivity + leeway == pytest.approx(theirs, rel=1e-5)


def test_without_noise_both_give_the_sum_of_the_clipped_updates():
    expected = sum(clip_by_global_norm(update, clip_norm=CLIP_NORM) for update in updates())
    theirs, _ = sum_of_tff(0.0, "distributed_skellam")
    ours, ring = our_sum(0.0, "distributed_skellam")
    rounding = 6 * math.sqrt(CLIENTS / 4) / ring.scale
    assert np.abs(ours - expected).max() < rounding
    assert np.abs(theirs - expected).max() < rounding
    assert np.abs(expected).max() > 100 * rounding


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_the_noise_of_both_has_the_deviation_that_was_asked_for(mechanism):
    expected = sum(clip_by_global_norm(update, clip_norm=CLIP_NORM) for update in updates())
    for found in (sum_of_tff(2.0, mechanism)[0], our_sum(2.0, mechanism)[0]):
        noise = found - expected
        # A standard deviation of 1000 values is known to 2.2 %.
        assert np.std(noise) == pytest.approx(2.0 * CLIP_NORM, rel=0.12)
        assert abs(np.mean(noise)) < 6 * CLIP_NORM * 2.0 / math.sqrt(SIZE)
