"""Sampling of simulated cohorts, and their pieces."""

from dataclasses import replace

import numpy as np
import pytest
from plans import digits_plan

from tf_dpfl.protocol.plan import Clients
from tf_dpfl.simulation.cohort import draw_cohort, shards_of_a_round


def draws(sampling, population, per_round, rounds, seed=b"s"):
    clients = Clients(population, per_round, 1, sampling)
    return [draw_cohort(clients, run_seed=seed, round_number=r + 1) for r in range(rounds)]


def test_poisson_includes_each_user_with_the_plans_probability():
    cohorts = draws("poisson", 50, 10, 2000)
    frequency = np.bincount(np.concatenate(cohorts), minlength=50) / 2000
    # Five standard deviations of a frequency of 2,000 coins.
    assert np.abs(frequency - 0.2).max() < 5 * np.sqrt(0.2 * 0.8 / 2000)


def test_poisson_sizes_vary_as_a_binomial():
    sizes = np.array([len(c) for c in draws("poisson", 50, 10, 2000)])
    assert sizes.var() == pytest.approx(50 * 0.2 * 0.8, rel=0.2)


def test_poisson_invites_two_users_together_as_often_as_two_coins_fall_so():
    cohorts = draws("poisson", 50, 10, 2000)
    together = np.mean([{3, 41} <= set(cohort.tolist()) for cohort in cohorts])
    # Five standard deviations of a frequency of 2,000 pairs of coins.
    assert abs(together - 0.04) < 5 * np.sqrt(0.04 * 0.96 / 2000)


def test_a_cohort_of_a_large_population_takes_the_cohorts_memory():
    clients = Clients(10**9, 100, 1, "poisson")  # coins alone would take eight gigabytes
    cohort = draw_cohort(clients, run_seed=b"s", round_number=1)
    assert 30 < len(cohort) < 200 and cohort.max() > 10**8


def test_fixed_draws_exactly_the_cohort_without_repeats():
    for cohort in draws("fixed", 50, 10, 100):
        assert len(cohort) == len(set(cohort)) == 10


def test_everyone_takes_part_when_the_cohort_is_the_population():
    for sampling in ("poisson", "fixed", "min_separation"):
        np.testing.assert_array_equal(draws(sampling, 7, 7, 1)[0], np.arange(7))


def gaps(cohorts):
    """The least rounds between two participations of one user."""
    last, least = {}, len(cohorts)
    for number, cohort in enumerate(cohorts):
        for user in cohort.tolist():
            least = min(least, number - last.get(user, -len(cohorts)))
            last[user] = number
    return least


@pytest.mark.parametrize(
    ("population", "per_round"), [(50, 10), (45, 8), (7, 7), (7, 6), (1000, 1), (1003, 97), (2, 1)]
)
def test_users_keep_the_separation_over_long_runs_and_take_part_as_often(population, per_round):
    rounds = 3 * population + 7
    cohorts = draws("min_separation", population, per_round, rounds)
    assert all(len(cohort) == len(set(cohort)) == per_round for cohort in cohorts)
    separation = Clients(population, per_round, 1, "min_separation").separation
    assert gaps(cohorts) >= separation == population // per_round
    counts = np.bincount(np.concatenate(cohorts), minlength=population)
    assert len(counts) == population and counts.max() - counts.min() <= 1


def test_independent_draws_would_not_keep_the_separation():
    """The test above fails with the sampler taken out."""
    for sampling in ("poisson", "fixed"):
        assert gaps(draws(sampling, 50, 10, 157)) < 5


def test_the_order_of_users_is_the_seeds_and_spreads_neighbours():
    first, other = (draws("min_separation", 1000, 100, 20, seed) for seed in (b"a", b"b"))
    for a, again, b in zip(first, first[10:], other):  # round and round
        np.testing.assert_array_equal(a, again)
        assert not np.array_equal(a, b)
    # A hundred ids of a thousand have a mean of 500 with a deviation of 27.
    assert all(abs(cohort.mean() - 499.5) < 5 * 28 for cohort in first)
    assert len({tuple(cohort % 2) for cohort in first[:10]}) == 10


def test_separated_cohorts_of_a_large_population_take_the_cohorts_memory():
    clients = Clients(10**9, 100, 1, "min_separation")
    for number in (1, 10**7, 10**9):
        cohort = draw_cohort(clients, run_seed=b"s", round_number=number)
        assert len(set(cohort.tolist())) == 100 and cohort.min() >= 0 and cohort.max() < 10**9


def test_rounds_and_seeds_draw_differently_and_repeatably():
    first, again, other = (draws("poisson", 500, 50, 2, seed) for seed in (b"a", b"a", b"b"))
    np.testing.assert_array_equal(first[0], again[0])
    assert not np.array_equal(first[0], first[1])
    assert not np.array_equal(first[0], other[0])


def shards(*, places, per_round, users_per_shard=None):
    plan = digits_plan()
    plan = replace(
        plan,
        clients=replace(plan.clients, population=10**6, clients_per_round=per_round),
        simulation=replace(plan.simulation, users_per_shard=users_per_shard),
    )
    return shards_of_a_round(plan, places=places)


@pytest.mark.parametrize("places", [1, 2, 3, 8, 96])
@pytest.mark.parametrize("per_round", [1, 2, 7, 50, 51, 1000, 12345])
def test_left_to_itself_the_number_of_shards_leaves_no_core_idle(places, per_round):
    count = shards(places=places, per_round=per_round)
    assert 1 <= count <= per_round
    if per_round >= places:
        assert count % places == 0 or count == per_round
        assert per_round / count <= 25 + 1e-9  # small enough to take turns
    else:
        assert count == per_round  # one user each, and some cores have none


def test_the_plan_may_say_how_many_users_a_shard_has():
    for per_round, size, expected in [(50, 25, 2), (51, 25, 3), (3, 25, 1), (7, 1, 7)]:
        assert shards(places=4, per_round=per_round, users_per_shard=size) == expected
