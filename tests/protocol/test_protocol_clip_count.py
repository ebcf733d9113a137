"""What a device tells of its clipping: half or minus half, and noise that hides which."""

import math
import os

import numpy as np
import pytest
from plan_trees import plan_tree

from tf_dpfl.protocol.clip_count import (
    clipped_indicator,
    count_stddev_of_share,
    fault_of_count,
    noised_count,
    report_size,
)
from tf_dpfl.protocol.errors import StateError
from tf_dpfl.protocol.plan import plan_from_dict

SIGMAS = 5.0  # standard errors; with fixed keys none is by chance


def plan_of(**privacy):
    return plan_from_dict(plan_tree(privacy={"adaptive_clipping": True, **privacy}))


def keys(seed):
    return np.random.default_rng(seed).bytes


def draws(count, *, stddev, number=4000):
    random_bytes = keys(3)
    return np.array(
        [noised_count(count, stddev=stddev, random_bytes=random_bytes) for _ in range(number)]
    )


def test_only_reports_of_adapting_plans_have_a_count():
    assert report_size(plan_of(), weights=7) == 8
    assert report_size(plan_from_dict(plan_tree()), weights=7) == 7


@pytest.mark.parametrize(
    ("norm", "indicator"),
    [(0.0, 0.5), (1.0, 0.5), (1.0000001, -0.5), (1e30, -0.5), (math.inf, -0.5), (math.nan, -0.5)],
)
def test_who_counts_as_clipped(norm, indicator):
    assert clipped_indicator(norm, clip_norm=1.0) == indicator


@pytest.mark.parametrize("stddev", [0.02, 0.5, 3.3, 700.0])
@pytest.mark.parametrize("count", [0.5, -0.5])
def test_the_noise_is_gaussian_of_the_share_around_the_half(count, stddev):
    z = np.sort((draws(count, stddev=stddev) - count) / stddev)
    assert abs(z.mean()) < SIGMAS / math.sqrt(len(z))
    assert abs(z.std() - 1) < SIGMAS / math.sqrt(2 * len(z))
    cdf = np.array([0.5 * math.erfc(-value / math.sqrt(2)) for value in z])
    distance = np.abs(cdf - np.arange(1, len(z) + 1) / len(z)).max()
    assert distance < 2.0 / math.sqrt(len(z))  # Kolmogorov-Smirnov, 1 in 1500


@pytest.mark.parametrize("stddev", [1e-7, 3e-4, 0.02, 0.5, 3.3, 1e5, 1e9])
def test_no_number_can_come_from_one_of_the_halves_alone(stddev):
    """Each is a multiple of one grid, and float32 keeps it so: no last bits tell the half."""
    grid = max(2.0 ** (math.floor(math.log2(stddev)) - 10), 2.0**-24)
    for count in (0.5, -0.5):
        values = draws(count, stddev=stddev, number=300)
        sent = values.astype(np.float32)
        np.testing.assert_array_equal(sent.astype(np.float64), values)
        assert np.all(np.remainder(values, grid) == 0)
    assert grid <= max(stddev / 1000, 2.0**-24)  # and rounding costs nothing


def test_sums_in_float32_would_give_the_half_away():
    """What the grid is for: near 0.75 an odd last bit comes from +1/2 alone."""
    noise = np.random.default_rng(1).normal(size=200_000).astype(np.float32)
    odd = {}
    for count in (0.5, -0.5):
        sums = np.float32(count) + noise
        near = sums[(sums > 0.5) & (sums < 1)].astype(np.float64)
        odd[count] = np.mean(np.remainder(near * 2.0**24, 2) == 1)
    assert odd[0.5] > 0.2 and odd[-0.5] == 0


def test_without_noise_the_number_is_bare_and_asks_nobody():
    def nobody(size):
        raise AssertionError(size)

    assert noised_count(-0.5, stddev=0.0, random_bytes=nobody) == -0.5
    for stddev in (-1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="stddev"):
            noised_count(0.5, stddev=stddev)


def test_the_noise_is_the_operating_systems_and_new_each_time():
    asked = []

    def counting(size):
        asked.append(size)
        return os.urandom(size)

    two = {noised_count(0.5, stddev=1e3, random_bytes=counting) for _ in range(2)}
    assert asked == [32, 32] and len(two) == 2
    assert noised_count(0.5, stddev=1e3) != noised_count(0.5, stddev=1e3)
    with pytest.raises(StateError, match="entropy"):
        noised_count(0.5, stddev=1.0, random_bytes=lambda size: b"short")


def test_shares_of_the_smallest_cohort_add_up_to_the_plans_deviation():
    plan = plan_of(clip_count_stddev=3.0)
    share = count_stddev_of_share(plan)
    assert share * math.sqrt(plan.privacy.smallest_cohort) == pytest.approx(3.0)
    assert count_stddev_of_share(plan_of(noise="server")) == 0


def test_no_device_could_have_sent_it():
    plan, random_bytes = plan_of(clip_count_stddev=3.0), keys(5)
    share = count_stddev_of_share(plan)
    for half in (0.5, -0.5):
        for _ in range(2000):
            count = noised_count(half, stddev=share, random_bytes=random_bytes)
            assert fault_of_count(plan, count) is None
    for count in (0.5 + 18.1 * share, -0.6 - 18 * share, math.inf, math.nan, 1e30):
        assert "within" in fault_of_count(plan, count)


@pytest.mark.parametrize("privacy", [{"noise": "server"}, {"noise_multiplier": 0.0}])
def test_without_noise_of_its_own_a_device_sends_a_half(privacy):
    """There the server's noise covers a half and no more."""
    plan = plan_of(**privacy)
    assert fault_of_count(plan, 0.5) is fault_of_count(plan, -0.5) is None
    for count in (0.0, 0.4, 0.5000001, 1.0, -1.0, 1e9, math.inf, math.nan):
        assert "0.5" in fault_of_count(plan, count)
