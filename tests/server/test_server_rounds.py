"""When a round closes, what it costs, and where the next model comes from."""

from __future__ import annotations

import math

import numpy as np
import pytest
from server_helpers import make_plan, make_task

from server import optimizer
from server.budget import Budget
from server.rounds import (
    Policy,
    check_policy,
    default_start_when,
    judge,
    lets_one_displace_another,
)
from tf_dpfl.protocol.errors import BudgetError, StateError
from tf_dpfl.protocol.plan import Server

DEVICES = [f"{i:032x}" for i in range(6)]


def verdict(*, invited: int, reported: int, target: int | None = None, late: bool = False) -> str:
    return judge(
        invited=DEVICES[:invited],
        reported=DEVICES[:reported],
        smallest_cohort=3,
        reports_per_round=target,
        deadline_passed=late,
    ).action


@pytest.mark.parametrize(
    ("invited", "reported", "target", "late", "expected"),
    [
        (6, 0, None, False, "wait"),
        (6, 5, None, False, "wait"),
        (6, 6, None, False, "close"),
        (6, 4, 4, False, "close"),
        (6, 3, 4, False, "wait"),
        (6, 3, 4, True, "close"),
        (6, 2, None, True, "abort"),
        (6, 0, None, True, "abort"),
        (3, 3, 4, False, "close"),
        (2, 0, None, False, "abort"),
        (0, 0, None, False, "abort"),
    ],
)
def test_a_round_closes_only_with_the_smallest_cohort(
    invited: int, reported: int, target: int | None, late: bool, expected: str
) -> None:
    assert verdict(invited=invited, reported=reported, target=target, late=late) == expected


def test_start_when_follows_from_the_sampling() -> None:
    plan = make_plan(clients__population=100, clients__clients_per_round=10)
    assert default_start_when(plan) == 20
    whole = make_plan(
        clients__population=100,
        clients__clients_per_round=10,
        clients__sampling="fixed",
    )
    assert default_start_when(whole) == 100
    with pytest.raises(StateError, match="whole"):
        check_policy(Policy(start_when=99), whole)
    for bad in (Policy(start_when=1), Policy(start_when=101)):
        with pytest.raises(StateError, match="--start-when"):
            check_policy(bad, plan)
    for reports in (1, 101):
        with pytest.raises(StateError, match="--reports-per-round"):
            check_policy(Policy(start_when=20, reports_per_round=reports), plan)


def test_a_report_that_displaces_another_is_charged_with_half_the_noise(tmp_path) -> None:
    assert lets_one_displace_another(invited=5, reported=3, reports_per_round=3)
    assert not lets_one_displace_another(invited=3, reported=3, reports_per_round=3)
    assert not lets_one_displace_another(invited=5, reported=3, reports_per_round=None)
    assert not lets_one_displace_another(invited=5, reported=3, reports_per_round=4)
    manifest = make_task(tmp_path / "task", make_plan(privacy__noise_multiplier=4.0))
    budget = Budget(manifest, max_epsilon=None)
    assert (
        budget.round_cost([], round_number=1, lets_one_displace_another=False).noise_multiplier
        == 4.0
    )
    assert (
        budget.round_cost([], round_number=1, lets_one_displace_another=True).noise_multiplier
        == 2.0
    )
    dear = budget.round_cost([], round_number=1, lets_one_displace_another=True).to_json()
    usual = budget.round_cost([], round_number=1, lets_one_displace_another=False).to_json()
    assert budget.epsilon_of([dear]) > budget.epsilon_of([usual]) > 0


def test_the_limit_is_the_smaller_of_the_operators_and_the_manifests(tmp_path) -> None:
    plan = make_plan(privacy__noise_multiplier=4.0)
    manifest = make_task(tmp_path / "free", plan)
    free = Budget(manifest, max_epsilon=None)
    cost = free.round_cost([], round_number=1, lets_one_displace_another=False)
    one = free.epsilon_after([], cost)
    assert 0 < one < math.inf
    claimed = make_task(tmp_path / "claimed", plan, central_epsilon=one)
    for budget in (
        Budget(claimed, max_epsilon=None),
        Budget(claimed, max_epsilon=100.0),
        Budget(manifest, max_epsilon=one * 1.01),
    ):
        assert budget.epsilon_after([], cost) == one
        with pytest.raises(BudgetError):
            budget.epsilon_after([cost.to_json()], cost)


def test_prior_spending_counts_against_the_budget(tmp_path) -> None:
    plan = make_plan(privacy__noise_multiplier=4.0)
    cost = Budget(make_task(tmp_path / "a", plan), max_epsilon=None).round_cost(
        [], round_number=1, lets_one_displace_another=False
    )
    later = Budget(
        make_task(tmp_path / "b", plan, prior_spending=(cost.to_json(),)), max_epsilon=None
    )
    first = Budget(make_task(tmp_path / "c", plan), max_epsilon=None)
    assert later.epsilon_of([]) == first.epsilon_of([cost.to_json()])


def settings(name: str) -> Server:
    return Server(rounds=3, learning_rate=0.5, optimizer=name, momentum=0.75, epsilon=1e-3)


@pytest.mark.parametrize("name", ["sgd", "momentum", "adam"])
def test_the_server_step_is_the_textbooks_coordinate_by_coordinate(name: str) -> None:
    plan, generator = settings(name), np.random.default_rng(3)
    weights = generator.normal(size=5).astype(np.float32)
    averages = generator.normal(size=(3, 5))
    state = optimizer.initial_state(plan, size=5)
    got = weights
    for average in averages:
        state, got = optimizer.apply(plan, state, weights=got, average=average)
    for i in range(5):
        w, velocity, first, second = float(weights[i]), 0.0, 0.0, 0.0
        for t, average in enumerate(averages[:, i], start=1):
            gradient = -average
            if name == "sgd":
                w -= 0.5 * gradient
            elif name == "momentum":
                velocity = 0.75 * velocity + gradient
                w -= 0.5 * velocity
            else:
                first = 0.9 * first + 0.1 * gradient
                second = 0.999 * second + 0.001 * gradient**2
                rate = 0.5 * math.sqrt(1 - 0.999**t) / (1 - 0.9**t)
                w -= rate * first / (math.sqrt(second) + 1e-3)
        assert got[i] == pytest.approx(w, rel=1e-5, abs=1e-6)
    assert state.steps == 3
    assert got.dtype == np.float32


def test_optimizer_state_of_another_size_is_refused() -> None:
    plan = settings("adam")
    state = optimizer.state_from_vector(plan, np.arange(10.0), size=5, steps=2)
    assert state.slots.shape == (2, 5)
    with pytest.raises(StateError):
        optimizer.state_from_vector(plan, np.arange(5.0), size=5, steps=2)
