"""The pre-flight: its ratio against drawn noise, its advice against the accountant."""

import math
import re
from dataclasses import replace

import numpy as np
import pytest
from privacy_plans import small_plan

from server.noise import draw_noise
from tf_dpfl.privacy.accounting import central_epsilon
from tf_dpfl.privacy.mechanism import mechanism_of_plan
from tf_dpfl.privacy.preflight import preflight

WEIGHTS = 2000


def noisy(**privacy):
    return small_plan(privacy={"noise_multiplier": 1.0, **privacy})


def test_ratio_is_the_most_that_updates_add_up_to_over_drawn_noise():
    plan = noisy(noise_multiplier=4.0)
    rng = np.random.default_rng(0)
    # Twenty rounds' averages over 50 users, clip norm 0.5: the noise of their sum.
    noise = (rng.normal(scale=4.0 * 0.5, size=(20, WEIGHTS)) / 50).sum(axis=0)
    expected = 20 * 0.5 / np.linalg.norm(noise)
    assert preflight(plan, weights=WEIGHTS).signal_to_noise == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("mechanism", ["banded", "tree"])
def test_correlated_noise_leaves_what_its_draws_leave(mechanism):
    plan = small_plan(
        clients={"sampling": "min_separation"},
        privacy={"noise_multiplier": 4.0, "noise": "server", "mechanism": mechanism},
    )
    rng, total, memory = np.random.default_rng(0), 0.0, None
    for number in range(1, 21):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                "server.noise.gaussian_noise",
                lambda size, stddev: rng.normal(scale=stddev, size=size),
            )
            drawn = draw_noise(plan, size=WEIGHTS, round_index=number, memory=memory)
        total, memory = total + drawn.noise / 50, drawn.memory
    expected = 20 * 0.5 / np.linalg.norm(total)
    assert preflight(plan, weights=WEIGHTS).signal_to_noise == pytest.approx(expected, rel=0.05)


def test_adaptive_clipping_leaves_less_for_it_releases_a_count_too():
    adaptive = noisy(noise_multiplier=4.0, adaptive_clipping=True)
    fixed = noisy(noise_multiplier=4.0)
    # 50 users: the count's deviation is 2.5, and 4 of both together more for the updates.
    both = math.sqrt(1 - (4.0 / 5.0) ** 2)
    ratios = [preflight(plan, weights=WEIGHTS).signal_to_noise for plan in (adaptive, fixed)]
    assert ratios[0] == pytest.approx(both * ratios[1])


def test_quiet_plans_get_no_warning_and_loud_ones_a_plain_one():
    assert preflight(noisy(noise_multiplier=0.5), weights=WEIGHTS).warning == ""
    silent = preflight(noisy(noise_multiplier=0.0), weights=WEIGHTS)
    assert (silent.signal_to_noise, silent.warning) == (math.inf, "")
    little = preflight(noisy(noise_multiplier=2.0), weights=WEIGHTS)
    assert "will learn little" in little.warning
    assert "can not learn" in preflight(noisy(noise_multiplier=9.0), weights=WEIGHTS).warning


def test_what_the_warning_proposes_is_heard_and_costs_what_it_says():
    plan = noisy(noise_multiplier=9.0)
    warning = preflight(plan, weights=WEIGHTS).warning
    noise, its_epsilon = map(
        float, re.search(r"noise_multiplier=(\S+) \(epsilon (\S+)\)", warning).groups()
    )
    cohort, epsilon = re.search(r"clients_per_round=(\d+) \(epsilon (\S+)\)", warning).groups()
    quieter = plan.with_noise_multiplier(noise)
    larger = replace(plan, clients=replace(plan.clients, clients_per_round=int(cohort)))
    for changed, stated in ((quieter, its_epsilon), (larger, float(epsilon))):
        assert preflight(changed, weights=WEIGHTS).signal_to_noise >= 2.98
        spent = mechanism_of_plan(changed, rounds=20)
        assert central_epsilon([spent], delta=1e-5) == pytest.approx(stated, rel=0.02)


def test_a_cohort_beyond_the_population_is_said_as_users():
    warning = preflight(noisy(noise_multiplier=100.0), weights=WEIGHTS).warning
    assert "clients_per_round" not in warning
    assert re.search(r"\d+ users instead of 1000", warning)


def test_single_examples_have_no_ratio():
    assert preflight(small_plan(privacy={"unit": "example", "delta": 1e-6}), weights=9) is None
