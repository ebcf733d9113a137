"""Mistakes other systems made (docs/privacy.md lists them): each would fail here."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from privacy_plans import small_plan

from tf_dpfl.privacy.accounting import central_epsilon
from tf_dpfl.privacy.mechanism import GaussianRounds, mechanism_of_plan
from tf_dpfl.protocol.clipping import clip_by_global_norm
from tf_dpfl.protocol.local_privacy import local_epsilon
from tf_dpfl.protocol.noise import gaussian_noise, noise_stddev_of_share, noise_stddev_of_sum


@given(
    counts=st.lists(st.integers(1, 1000), min_size=2, max_size=8),
    scale=st.floats(0.01, 100),
)
def test_one_user_moves_the_sum_by_the_clip_norm_whatever_its_example_count(counts, scale):
    """Pitfall 2: noise for a plain mean on a mean weighted by example counts.

    What a round releases is sum(reports) / clients_per_round: the noise is stated
    over the sum, where one user moves at most C.
    """
    generator = np.random.default_rng(len(counts))
    reports = [
        clip_by_global_norm(
            (scale * count * generator.standard_normal(5)).astype(np.float32), clip_norm=0.5
        ).astype(np.float64)
        for count in counts
    ]
    for left_out in range(len(reports)):
        without = sum(r for i, r in enumerate(reports) if i != left_out)
        assert np.linalg.norm(sum(reports) - without) <= 0.5 + 1e-12


def test_a_mean_weighted_by_counts_would_move_by_more_than_is_accounted_for():
    """The mistake itself: the heavy user moves it by C, not by C / users."""
    counts = np.array([1, 1, 1, 997])
    reports = np.eye(4) * 0.5
    moved = np.linalg.norm(reports.T @ counts / counts.sum() - reports[:3].sum(axis=0) / 4)
    assert moved > 3 * 0.5 / 4


def test_example_counts_and_reports_that_came_have_no_say_in_the_mechanism():
    few, many = (small_plan(clients={"examples_per_client": n}) for n in (1, 1000))
    assert mechanism_of_plan(few, rounds=3) == mechanism_of_plan(many, rounds=3)


def test_local_privacy_is_composed_and_tied_to_the_clip_norm():
    """Pitfall 4: no composition, and a sensitivity that is not the clip norm's."""
    small, large = (
        small_plan(privacy={"clip_norm": c, "noise_multiplier": 10.0}) for c in (0.5, 5.0)
    )
    # The noise follows the clip norm, so epsilon does not depend on it...
    assert local_epsilon(small, reports=3) == pytest.approx(local_epsilon(large, reports=3))
    # ... and it grows with every report.
    grown = [local_epsilon(small, reports=k) for k in range(6)]
    assert grown == sorted(grown) and len(set(grown)) == 6


def test_only_a_true_poisson_sample_is_accounted_as_one():
    """Pitfall 7: epsilon of a Poisson sample for a shuffle or for whoever checks in."""
    poisson = small_plan()
    fixed = small_plan(clients={"sampling": "fixed"})
    epsilons = [
        central_epsilon([mechanism_of_plan(plan, rounds=20)], delta=1e-5)
        for plan in (poisson, fixed)
    ]
    assert epsilons[1] > 2 * epsilons[0]


@pytest.mark.parametrize("value", [math.nan, -math.nan])
def test_nan_passes_no_check_of_the_privacy_room(value):
    """Pitfall 11: `if value < 0: raise` lets NaN pass."""
    good = GaussianRounds(1.0, "poisson", 0.5, 1)
    for name in ("noise_multiplier", "sampling_probability", "rounds"):
        with pytest.raises(ValueError, match=name):
            replace(good, **{name: value})
    with pytest.raises(ValueError, match="delta"):
        central_epsilon([good], delta=value)


@pytest.mark.parametrize("reports", [25, 40, 50])
def test_the_sum_carries_the_accounted_noise_however_many_report(reports):
    """From the smallest cohort up: taken alone, one share less would be too little."""
    plan = small_plan()
    privacy = plan.privacy
    settings = {"clip_norm": privacy.clip_norm, "noise_multiplier": privacy.noise_multiplier}
    share = noise_stddev_of_share(**settings, smallest_cohort=privacy.smallest_cohort)
    accounted = noise_stddev_of_sum(**settings)
    size = 40_000
    total = np.zeros(size)
    for _ in range(reports):
        total += gaussian_noise(size, stddev=share)
    carried = total.var() / accounted**2
    assert carried == pytest.approx(reports / privacy.smallest_cohort, rel=0.05)
    assert share * math.sqrt(reports) >= accounted * (1 - 1e-12)
    assert share * math.sqrt(privacy.smallest_cohort - 1) < accounted
