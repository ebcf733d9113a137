"""Integer mechanisms: every bound above the divergence summed up term by term, and near it."""

import math

import numpy as np
import pytest
from dp_accounting.pld import privacy_loss_distribution
from scipy import stats

from tf_dpfl.privacy.accounting_integers import (
    discrete_gaussian_epsilon,
    discrete_gaussian_renyi,
    skellam_epsilon,
    skellam_renyi,
)
from tf_dpfl.protocol.gaussian import gaussian_epsilon
from tf_dpfl.protocol.integer_sums import IntegerSum


def renyi_of_shift(log_p, shift, order):
    """D_order between a distribution (logarithms over consecutive integers) and its shift."""
    p, q = log_p[shift:], log_p[: len(log_p) - shift]
    terms = order * p + (1 - order) * q
    return float(np.logaddexp.reduce(terms) / (order - 1))


def log_skellam(variance):
    reach = int(12 * math.sqrt(variance) + 40)
    support = np.arange(-reach, reach + 1)
    from scipy.special import ive

    # ive is scaled by exp(-variance), which is the whole prefactor.
    with np.errstate(divide="ignore"):
        found = np.log(ive(np.abs(support), variance))
    return found[np.isfinite(found)]


def log_sum_of_gaussians(variance, clients):
    """Logarithms of the distribution of a sum of discrete Gaussians, by convolution."""
    reach = int(40 * math.sqrt(variance)) + 1
    one = np.exp(-(np.arange(-reach, reach + 1.0) ** 2) / (2 * variance))
    one /= one.sum()
    total = one
    for _ in range(clients - 1):
        total = np.convolve(total, one)
    kept = total > 1e-280
    return np.log(total[kept])


@pytest.mark.parametrize("variance", [2.0, 10.0, 400.0])
@pytest.mark.parametrize("shift", [1, 3])
@pytest.mark.parametrize("order", [2, 3, 8])
def test_skellam_bound_is_above_the_true_divergence_and_near_it(variance, shift, order):
    true = renyi_of_shift(log_skellam(variance), shift, order)
    bound = skellam_renyi(order, variance=variance, l2=shift, l1=shift)
    assert true <= bound * (1 + 1e-9)
    if variance == 400.0:
        assert bound <= true * 1.02


@pytest.mark.parametrize("clients", [1, 2, 10])
@pytest.mark.parametrize("share_variance", [0.3, 0.5, 2.0])
@pytest.mark.parametrize("order", [2, 4])
def test_discrete_gaussian_bound_is_above_the_true_divergence(clients, share_variance, order):
    true = renyi_of_shift(log_sum_of_gaussians(share_variance, clients), 1, order)
    arguments = {"share_variance": share_variance, "clients": clients, "size": 1}
    bound = discrete_gaussian_renyi(order, **arguments, l2=1.0, l1=1.0)
    assert true <= bound * (1 + 1e-6)
    if share_variance == 2.0:
        assert bound <= true * 1.02


def test_one_discrete_gaussian_is_the_pld_of_dp_accounting():
    """dp_accounting sums the privacy losses of a discrete Gaussian exactly."""
    pld = privacy_loss_distribution.from_discrete_gaussian_mechanism(
        20.0, sensitivity=10, value_discretization_interval=1e-3
    )
    exact = pld.self_compose(8).get_epsilon_for_delta(1e-6)
    ours = discrete_gaussian_epsilon(
        rounds=8, delta=1e-6, share_variance=400.0, clients=1, size=1, l2=10.0, l1=10.0
    )
    assert exact <= ours <= 1.1 * exact  # Renyi divergences are not tight


@pytest.mark.parametrize("noise_multiplier", [0.5, 1.0, 4.0])
def test_fine_integers_cost_what_gaussian_noise_costs(noise_multiplier):
    """Closed form of the Gaussian mechanism; the rest is the slack of Renyi divergences."""
    fine = IntegerSum(size=1000, clip_norm=1.0, scale=2.0**20, bits=40, rotation_seed=b"")
    variance = (noise_multiplier * 2.0**20) ** 2
    norms = {"l2": fine.l2_sensitivity, "l1": fine.l1_sensitivity}
    exact = gaussian_epsilon(noise_multiplier=noise_multiplier, delta=1e-5, reports=10)
    skellam = skellam_epsilon(rounds=10, delta=1e-5, variance=variance, **norms)
    gauss = discrete_gaussian_epsilon(
        rounds=10, delta=1e-5, share_variance=variance / 50, clients=50, size=1024, **norms
    )
    for found in (skellam, gauss):
        assert exact <= found <= 1.12 * exact


def test_coarse_integers_cost_more():
    def epsilon(scale):
        coarse = IntegerSum(size=1000, clip_norm=1.0, scale=scale, bits=40, rotation_seed=b"")
        norms = {"l2": coarse.l2_sensitivity, "l1": coarse.l1_sensitivity}
        return skellam_epsilon(rounds=10, delta=1e-5, variance=scale**2, **norms)

    found = [epsilon(scale) for scale in (8.0, 64.0, 512.0, 4096.0)]
    assert found == sorted(found, reverse=True)
    assert found[0] > 2 * found[-1]


def test_epsilon_grows_with_rounds_and_falls_with_noise():
    by_rounds = [
        skellam_epsilon(rounds=n, delta=1e-6, variance=1e4, l2=50.0, l1=400.0) for n in (0, 1, 2, 9)
    ]
    assert by_rounds[0] == 0.0
    assert by_rounds == sorted(by_rounds)
    by_noise = [
        skellam_epsilon(rounds=3, delta=1e-6, variance=v, l2=50.0, l1=400.0)
        for v in (0.0, 1e3, 1e5, 1e12)
    ]
    assert by_noise[0] == math.inf
    assert by_noise == sorted(by_noise, reverse=True)
    assert by_noise[-1] < 0.01
    shares = {"delta": 1e-6, "clients": 10, "size": 64, "l2": 50.0, "l1": 400.0}
    assert discrete_gaussian_epsilon(rounds=1, share_variance=0.0, **shares) == math.inf
    assert discrete_gaussian_epsilon(rounds=0, share_variance=9.0, **shares) == 0.0
    fewer = {**shares, "clients": 5}
    assert discrete_gaussian_epsilon(
        rounds=1, share_variance=1e4, **fewer
    ) > discrete_gaussian_epsilon(rounds=1, share_variance=1e4, **shares)


def test_values_without_a_theorem_are_refused():
    with pytest.raises(ValueError, match="share_variance"):
        discrete_gaussian_renyi(2, share_variance=0.2, clients=5, size=8, l2=1.0, l1=1.0)
    for delta in (0.0, 1.0, math.nan):
        with pytest.raises(ValueError, match="delta"):
            skellam_epsilon(rounds=1, delta=delta, variance=9.0, l2=1.0, l1=1.0)


def test_the_reference_distribution_is_the_one_that_is_drawn():
    support = np.arange(-5, 6)
    log_p = log_skellam(7.0)
    middle = len(log_p) // 2
    expected = stats.skellam.pmf(support, 3.5, 3.5)
    np.testing.assert_allclose(np.exp(log_p[middle - 5 : middle + 6]), expected, rtol=1e-9)
