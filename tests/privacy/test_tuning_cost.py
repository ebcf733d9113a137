"""What a search costs: by dp_accounting called directly, and by the exact distribution."""

import math

import numpy as np
import pytest
from dp_accounting import dp_event, pld, rdp
from scipy import stats

from tf_dpfl.privacy.accounting import central_epsilon, renyi_curves
from tf_dpfl.privacy.factorisation import banded_sensitivity
from tf_dpfl.privacy.mechanism import BandedRounds, ExampleGaussianEpochs, GaussianRounds
from tf_dpfl.privacy.tuning_cost import (
    grid_cost,
    random_cost,
    release_of_try,
    repeated_and_selected,
    score_mechanism,
)
from tf_dpfl.protocol.gaussian import gaussian_epsilon

DELTA = 1e-5
# One release of this noise has epsilon 2 at DELTA by Renyi accounting.
NOISE_OF_EPSILON_2 = 2.1491103

GAUSS = GaussianRounds(NOISE_OF_EPSILON_2, "poisson", 1.0, 1)
POISSON = GaussianRounds(2.0, "poisson", 0.1, 30)
FIXED = GaussianRounds(2.0, "fixed", 0.1, 30)
EXAMPLE = ExampleGaussianEpochs(3.0, "poisson", 0.1, 30, epochs=2)


def random_epsilon(*trainings, mean_tries=10, score_noise=None, **options):
    one = release_of_try(trainings, score_noise=score_noise)
    return random_cost([one], mean_tries=mean_tries, delta=DELTA, **options).epsilon


def event_of(mechanism):
    sampled = dp_event.PoissonSampledDpEvent(
        mechanism.sampling_probability, dp_event.GaussianDpEvent(mechanism.noise_multiplier)
    )
    return dp_event.SelfComposedDpEvent(sampled, mechanism.rounds)


def selected_epsilon(event, mean):
    accountant = rdp.RdpAccountant()
    accountant.compose(dp_event.RepeatAndSelectDpEvent(event, mean, 1.0))
    return accountant.get_epsilon(DELTA)


def test_one_run_of_epsilon_2_becomes_4_with_ten_tries_in_the_mean():
    accountant = rdp.RdpAccountant()
    accountant.compose(dp_event.GaussianDpEvent(NOISE_OF_EPSILON_2))
    assert accountant.get_epsilon(DELTA) == pytest.approx(2.0, abs=0.03)
    assert random_epsilon(GAUSS) == pytest.approx(4.0, abs=0.05)


@pytest.mark.parametrize("mean", [1, 2.5, 10, 200])
def test_random_search_agrees_with_dp_accounting(mean):
    """Its default orders are others; the bounds differ by less than 1 % from two tries on."""
    direct = selected_epsilon(event_of(POISSON), mean)
    ours = random_epsilon(POISSON, mean_tries=mean)
    assert ours == pytest.approx(direct, rel=0.01 if mean > 1 else 0.05)


def test_folds_and_their_scores_are_part_of_what_is_repeated():
    score = dp_event.GaussianDpEvent(5.0)
    event = dp_event.ComposedDpEvent([event_of(POISSON), event_of(POISSON), score])
    ours = random_epsilon(POISSON, POISSON, POISSON, score_noise=5.0)
    assert ours == pytest.approx(selected_epsilon(event, 10), rel=0.01)


def test_cost_grows_with_the_mean_number_of_tries():
    costs = [random_epsilon(POISSON, mean_tries=mean) for mean in (1, 2, 5, 10, 100, 1000)]
    assert costs == sorted(costs) and len(set(costs)) == len(costs)
    assert costs[0] >= central_epsilon([POISSON], delta=DELTA)


def test_what_carries_less_noise_costs_more():
    noisy = random_epsilon(POISSON, POISSON, score_noise=10.0)
    assert random_epsilon(POISSON, POISSON, score_noise=1.0) > noisy
    assert random_epsilon(POISSON, POISSON, POISSON, score_noise=10.0) > noisy


def selected_delta(epsilon, *, noise, mean):
    """The exact delta of the largest of a geometric number of N(x, noise^2), for x = 0 and 1."""
    at = np.linspace(-12 * noise, 12 * noise + 1, 400_001)
    p = 1 / mean

    def density(x):
        return p * stats.norm.pdf(at, x, noise) / (1 - (1 - p) * stats.norm.cdf(at, x, noise)) ** 2

    pair = density(0), density(1)
    step = at[1] - at[0]
    one_way = [np.maximum(a - math.exp(epsilon) * b, 0).sum() for a, b in (pair, pair[::-1])]
    return max(one_way) * step


@pytest.mark.parametrize("mean", [2, 10, 100])
def test_the_best_of_a_geometric_number_keeps_to_the_stated_epsilon(mean):
    """A mechanism whose output is its own score, by its exact density."""
    epsilon = random_epsilon(GAUSS, mean_tries=mean)
    assert selected_delta(epsilon, noise=NOISE_OF_EPSILON_2, mean=mean) <= DELTA
    # Selection left out, one run's epsilon would be stated: it does not hold.
    single = central_epsilon([GAUSS], delta=DELTA)
    assert selected_delta(single, noise=NOISE_OF_EPSILON_2, mean=mean) > 1.2 * DELTA


@pytest.mark.parametrize("training", [FIXED, EXAMPLE, POISSON], ids=str)
def test_every_kind_of_training_is_repeated_by_theorem_2(training):
    """Papernot & Steinke's theorem 2 with shape 1, written out for this test."""
    mean = 10
    for curve in renyi_curves([training]):
        got = repeated_and_selected(curve, mean_tries=mean)
        a, value = np.array(curve.orders, float), np.array(curve.values)
        once = 2 * np.min((1 - 1 / a) * value + math.log(mean) / a)
        expected = value + once + math.log(mean) / (a - 1)
        # A Renyi divergence does not fall with the order: a larger order bounds smaller ones.
        expected = np.minimum.accumulate(expected[::-1])[::-1]
        finite = np.isfinite(expected)
        np.testing.assert_allclose(np.array(got.values)[finite], expected[finite], rtol=1e-9)
        assert np.isinf(np.array(got.values)[~finite]).all()
    costs = random_epsilon(training), random_epsilon(training, training, score_noise=3.0)
    assert all(central_epsilon([training], delta=DELTA) < cost < math.inf for cost in costs)


def test_the_most_revealing_try_that_can_be_drawn_bounds_them_all():
    loud = GaussianRounds(1.0, "poisson", 0.1, 30)
    tries = [release_of_try([POISSON]), release_of_try([loud])]
    both = random_cost(tries, mean_tries=10, delta=DELTA).epsilon
    assert both == pytest.approx(random_epsilon(loud), rel=1e-9)


def test_mixed_sampling_holds_under_zero_out():
    tries = [release_of_try([POISSON]), release_of_try([FIXED])]
    cost = random_cost(tries, mean_tries=10, delta=DELTA)
    assert cost.relation == "zero-out" and cost.method.startswith("RDP, ")


def test_a_grid_is_the_composition_of_all_its_tries():
    accountant = pld.PLDAccountant()
    for _ in range(6 * 2):
        accountant.compose(event_of(POISSON))
    for _ in range(6):
        accountant.compose(dp_event.GaussianDpEvent(5.0))
    one = release_of_try([POISSON] * 3, score_noise=5.0)
    cost = grid_cost([one] * 6, delta=DELTA)
    assert cost.epsilon == pytest.approx(accountant.get_epsilon(DELTA), rel=0.01)
    assert cost.relation == "add-or-remove-one"
    assert grid_cost([one], delta=DELTA).epsilon < cost.epsilon


def test_a_grid_counts_for_the_users_of_the_fold_that_tells_most():
    loud = GaussianRounds(1.0, "poisson", 0.1, 30)
    cost = grid_cost([release_of_try([POISSON, loud], score_noise=5.0)], delta=DELTA)
    score = score_mechanism(loud, score_noise=5.0)
    assert cost.epsilon == pytest.approx(central_epsilon([loud, score], delta=DELTA), rel=1e-9)


def test_the_training_of_the_best_plan_comes_on_top():
    one = release_of_try([POISSON] * 2, score_noise=5.0)
    after = grid_cost([one], delta=DELTA, trained_after=[POISSON]).epsilon_with_training
    score = score_mechanism(POISSON, score_noise=5.0)
    expected = central_epsilon([POISSON, POISSON, score], delta=DELTA)
    assert after == pytest.approx(expected, rel=1e-9)
    cost = random_cost([one], mean_tries=10, delta=DELTA, trained_after=[POISSON])
    assert cost.epsilon < cost.epsilon_with_training
    assert cost.epsilon_with_training < cost.epsilon + central_epsilon([POISSON], delta=DELTA)


def test_publishing_every_try_of_a_random_search_is_their_composition():
    one = release_of_try([POISSON])
    cost = random_cost([one], mean_tries=10, delta=DELTA, drawn=[one] * 40)
    assert cost.epsilon_of_all_tries == grid_cost([one] * 40, delta=DELTA).epsilon
    assert cost.epsilon_of_all_tries > cost.epsilon


def test_without_noise_there_is_no_bound():
    silent = GaussianRounds(0.0, "poisson", 0.1, 30)
    assert random_epsilon(silent) == math.inf
    assert grid_cost([release_of_try([silent])], delta=DELTA).epsilon == math.inf
    after = random_cost(
        [release_of_try([POISSON])], mean_tries=10, delta=DELTA, trained_after=[silent]
    )
    assert after.epsilon_with_training == math.inf


def test_held_out_scores_do_not_go_without_noise():
    with pytest.raises(ValueError, match="score_noise=None"):
        release_of_try([POISSON, POISSON])
    with pytest.raises(ValueError, match="score_noise=5.0"):
        release_of_try([POISSON], score_noise=5.0)


def test_correlated_rounds_are_repeated_as_the_one_release_they_are():
    banded = BandedRounds(5.0, "min_separation", 1 / 12, 24, separation=12, first_round=1, bands=12)
    sensitivity = banded_sensitivity(bands=12, separation=12, rounds=24)
    event = dp_event.GaussianDpEvent(5.0 / sensitivity)
    assert random_epsilon(banded) == pytest.approx(selected_epsilon(event, 10), rel=0.01)
    score = dp_event.GaussianDpEvent(3.0)
    both = selected_epsilon(dp_event.ComposedDpEvent([event, score]), 10)
    assert random_epsilon(banded, banded, score_noise=3.0) == pytest.approx(both, rel=0.01)
    # Two tries are two releases, and never one longer run.
    two = grid_cost([release_of_try([banded])] * 2, delta=DELTA).epsilon
    exact = gaussian_epsilon(noise_multiplier=5.0 / sensitivity / math.sqrt(2), delta=DELTA)
    assert two == pytest.approx(exact, rel=1e-6)
