"""Epsilon of one example: independent oracles, limits, and nothing left out of the count."""

import itertools
import math
import time
from dataclasses import replace

import mpmath
import numpy as np
import pytest
from dp_accounting.pld.privacy_loss_distribution import from_gaussian_mechanism
from hypothesis import given, settings
from hypothesis import strategies as st
from privacy_plans import small_plan

from tf_dpfl.privacy.accounting import account, central_epsilon
from tf_dpfl.privacy.calibration import calibrate_plan
from tf_dpfl.privacy.mechanism import ExampleGaussianEpochs, GaussianRounds, mechanism_of_plan
from tf_dpfl.protocol.errors import PlanError
from tf_dpfl.protocol.gaussian import gaussian_epsilon
from tf_dpfl.protocol.local_privacy import local_epsilon

DELTA = 1e-5


def rounds_of(noise=2.0, probability=0.3, rounds=20, epochs=2, sampling="poisson"):
    return ExampleGaussianEpochs(noise, sampling, probability, rounds, epochs)


def epsilon(*spending, delta=DELTA, accountant="pld"):
    return central_epsilon(spending, delta=delta, accountant=accountant)


def exact_delta(spending, eps):
    """The mixture over every combination of participations, in 40 digits."""
    with mpmath.workdps(40):
        total = mpmath.mpf(0)
        for counts in itertools.product(*(range(m.rounds + 1) for m in spending)):
            weight, squared = mpmath.mpf(1), mpmath.mpf(0)
            for m, k in zip(spending, counts):
                q = mpmath.mpf(m.sampling_probability)
                weight *= mpmath.binomial(m.rounds, k) * q**k * (1 - q) ** (m.rounds - k)
                squared += k * m.epochs / mpmath.mpf(m.noise_multiplier) ** 2
            if squared:
                mu = mpmath.sqrt(squared)
                total += weight * (
                    mpmath.ncdf(mu / 2 - eps / mu)
                    - mpmath.exp(eps) * mpmath.ncdf(-mu / 2 - eps / mu)
                )
        return total


CASES = [
    [rounds_of()],
    [rounds_of(sampling="fixed")],
    [rounds_of(0.7, 0.01, 60, 1)],
    [rounds_of(50.0, 0.5, 40, 3)],
    [rounds_of(), rounds_of(5.0, 0.9, 7, 1)],
    [rounds_of(1.5, 1.0, 3, 1), rounds_of(3.0, 0.2, 9, 4)],
]


@pytest.mark.parametrize("spending", CASES, ids=range(len(CASES)))
@pytest.mark.parametrize("delta", [1e-3, 1e-9, 1e-30])
def test_epsilon_is_where_the_exact_mixture_meets_delta(spending, delta):
    eps = epsilon(*spending, delta=delta)
    assert exact_delta(spending, eps) <= delta
    assert eps == 0 or exact_delta(spending, eps * (1 - 1e-5)) > delta


def test_agrees_with_dp_accountings_composed_gaussians_mixed_by_hand():
    m = rounds_of(3.0, 0.25, 12, 2)
    eps = epsilon(m)
    mixed = 0.0
    for k in range(1, 13):
        weight = math.comb(12, k) * 0.25**k * 0.75 ** (12 - k)
        pld = from_gaussian_mechanism(3.0, value_discretization_interval=1e-4)
        mixed += weight * pld.self_compose(2 * k).get_delta_for_epsilon(eps)
    assert mixed == pytest.approx(DELTA, rel=0.01)


def test_a_simulated_client_loses_as_much_as_is_stated():
    """Monte Carlo of the mechanism itself: the loss of each run, cohorts seen."""
    m, generator = rounds_of(2.0, 0.4, 10, 3), np.random.default_rng(5)
    delta, runs = 0.01, 400_000
    eps = epsilon(m, delta=delta)
    squared = generator.binomial(m.rounds, 0.4, runs) * m.epochs / m.noise_multiplier**2
    loss = squared / 2 + np.sqrt(squared) * generator.standard_normal(runs)
    found = np.mean(np.maximum(0.0, -np.expm1(eps - loss)))
    assert found == pytest.approx(delta, rel=0.05)


def test_in_every_round_it_is_the_closed_form_of_rounds_times_epochs():
    for sampling in ("poisson", "fixed"):
        m = rounds_of(4.0, 1.0, 30, 2, sampling)
        plain = gaussian_epsilon(noise_multiplier=4.0, delta=DELTA, reports=60)
        assert epsilon(m) == pytest.approx(plain, rel=1e-6)
        assert epsilon(m) >= plain
        assert epsilon(rounds_of(4.0, 0.2, 30, 2, sampling).unamplified()) == epsilon(m)


def test_epochs_and_rounds_of_a_client_count():
    once = epsilon(rounds_of(probability=1.0, rounds=1, epochs=1))
    assert epsilon(rounds_of(probability=1.0, rounds=1, epochs=4)) > 1.5 * once
    assert epsilon(rounds_of(probability=1.0, rounds=4, epochs=1)) > 1.5 * once
    assert epsilon(rounds_of(probability=1.0, rounds=1, epochs=4)) == pytest.approx(
        epsilon(rounds_of(probability=1.0, rounds=4, epochs=1))
    )


@settings(max_examples=40, deadline=None)
@given(
    noise=st.floats(0.3, 100),
    probability=st.floats(0.001, 0.95),
    rounds=st.integers(1, 300),
    epochs=st.integers(1, 5),
    delta=st.floats(1e-12, 1e-2),
)
def test_more_noise_and_less_of_all_else_never_costs_more(
    noise, probability, rounds, epochs, delta
):
    m = rounds_of(noise, probability, rounds, epochs)
    here = epsilon(m, delta=delta) * (1 + 1e-6)
    assert epsilon(replace(m, noise_multiplier=1.2 * noise), delta=delta) <= here
    assert epsilon(replace(m, rounds=rounds - 1), delta=delta) <= here
    assert epsilon(replace(m, sampling_probability=0.9 * probability), delta=delta) <= here
    assert epsilon(m.unamplified(), delta=delta) * (1 + 1e-6) >= epsilon(m, delta=delta)
    if epochs > 1:
        assert epsilon(replace(m, epochs=epochs - 1), delta=delta) <= here
    assert epsilon(m, delta=delta) <= epsilon(m, delta=delta, accountant="rdp") * (1 + 1e-6)


def test_limits():
    assert epsilon(rounds_of(rounds=0)) == 0
    assert epsilon(rounds_of(1e9, 0.5, 10, 1)) < 1e-4
    assert epsilon(rounds_of(0.0)) == math.inf
    # Hardly anybody is ever drawn: delta alone pays for those who are.
    assert epsilon(rounds_of(1.0, 1e-9, 10, 1)) == 0


@pytest.mark.parametrize("delta", [1e-5, 1e-12, 1e-320])
def test_a_billion_rounds_neither_hang_nor_overflow(delta):
    began = time.monotonic()
    for probability in (1e-9, 0.001, 0.5, 1.0):
        for noise in (1e-6, 1.0, 1e4):
            m = rounds_of(noise, probability, 10**9, 10**4)
            eps = epsilon(m, delta=delta)
            every = gaussian_epsilon(noise_multiplier=noise, delta=delta, reports=10**13)
            assert 0 < eps <= every * (1 + 1e-6)
    assert time.monotonic() - began < 60


def test_many_rounds_are_near_their_mean():
    """With K far from its edges, epsilon is about that of the mean number of rounds."""
    m = rounds_of(1e4, 0.5, 10**6, 1)
    mean = gaussian_epsilon(noise_multiplier=1e4, delta=DELTA, reports=500_000)
    assert mean <= epsilon(m) <= 1.01 * mean
    assert epsilon(m) <= 1.2 * epsilon(m, accountant="rdp")


def test_many_kinds_together_stay_close_to_their_exact_mixture():
    """Three wide distributions: more combinations than are kept apart."""
    spending = [rounds_of(40.0, 0.5, 2000, 1), rounds_of(60.0, 0.3, 3000, 1)]
    together = epsilon(*spending, rounds_of(80.0, 0.2, 1500, 1))
    mean = math.sqrt(1000 / 40**2 + 900 / 60**2 + 300 / 80**2)
    plain = gaussian_epsilon(noise_multiplier=1 / mean, delta=DELTA)
    assert plain <= together <= 1.05 * plain


def test_the_relation_is_zero_out_and_the_method_is_named():
    found = account([rounds_of()], delta=DELTA)
    assert found.relation == "zero-out" and "mixed over participation" in found.method


def test_units_do_not_mix():
    users = GaussianRounds(2.0, "poisson", 0.3, 5)
    with pytest.raises(PlanError, match="units example and user.*keep privacy.unit"):
        epsilon(rounds_of(), users)
    assert epsilon(rounds_of(), users.with_rounds(0)) == epsilon(rounds_of())


def test_a_plan_of_examples_is_accounted_with_its_epochs():
    plan = small_plan(privacy={"unit": "example"}, local_training={"epochs": 3})
    assert mechanism_of_plan(plan, rounds=4) == rounds_of(1.0, 0.05, 4, 3)


@pytest.mark.parametrize("target", [0.5, 3.0])
def test_calibration_keeps_just_below_the_target(target):
    privacy = {"unit": "example", "noise_multiplier": None, "target_epsilon": target}
    plan = calibrate_plan(small_plan(privacy=privacy, local_training={"epochs": 2}))
    spent = [mechanism_of_plan(plan, rounds=20)]
    assert 0.99 * target <= central_epsilon(spent, delta=DELTA) <= target


def test_the_local_number_is_replace_one_and_counts_reports_and_epochs():
    plan = small_plan(
        privacy={"unit": "example", "noise_multiplier": 6.0}, local_training={"epochs": 2}
    )
    # Two clipped gradients are up to 2 C apart: 6 / 2, and 5 reports of 2 epochs.
    expected = gaussian_epsilon(noise_multiplier=3.0, delta=DELTA, reports=10)
    assert local_epsilon(plan, reports=5) == expected
    smaller = replace(plan, privacy=replace(plan.privacy, smallest_cohort=1))
    assert local_epsilon(smaller, reports=5) == expected  # no share: the noise is the steps'
    assert local_epsilon(plan, reports=0) == 0
