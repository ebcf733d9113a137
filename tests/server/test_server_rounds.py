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
from tf_dpfl.privacy.accounting import central_epsilon
from tf_dpfl.privacy.mechanism import ExampleGaussianEpochs, GaussianRounds
from tf_dpfl.protocol.errors import BudgetError, StateError, TaskError
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


@pytest.mark.parametrize(("state", "probability"), [("reset", 0.5), ("keep", 1.0)])
def test_a_displaced_devices_kept_state_ends_amplification(tmp_path, state, probability) -> None:
    """It tells that somebody else was there, in every later round."""
    plan = make_plan(
        clients__population=8,
        privacy__noise_multiplier=4.0,
        local_training__optimizer="momentum",
        local_training__optimizer_state=state,
    )
    budget = Budget(make_task(tmp_path / "task", plan), max_epsilon=None)
    usual, dear = (
        budget.round_cost([], round_number=1, lets_one_displace_another=displaces)
        for displaces in (False, True)
    )
    assert (usual.noise_multiplier, usual.sampling_probability) == (4.0, 0.5)
    assert (dear.noise_multiplier, dear.sampling_probability) == (2.0, probability)


def example_budget(folder, **changes) -> Budget:
    plan = make_plan(
        privacy__unit="example",
        privacy__noise_multiplier=4.0,
        clients__population=8,
        local_training__epochs=2,
    )
    return Budget(make_task(folder, plan, **changes), max_epsilon=None)


def test_displacing_a_report_costs_an_example_nothing_more(tmp_path) -> None:
    """Who is invited depends on no example; the displaced take part less often."""
    budget = example_budget(tmp_path / "task")
    costs = [
        budget.round_cost([], round_number=1, lets_one_displace_another=dear)
        for dear in (False, True)
    ]
    assert costs[0] == costs[1] == ExampleGaussianEpochs(4.0, "poisson", 0.5, 1, 2)


def test_every_attempt_counts_for_an_example_also_failed_ones(tmp_path) -> None:
    """Released only when one client comes: with it in every released round, q says nothing."""
    budget = example_budget(tmp_path / "task")
    first = budget.round_cost([], round_number=3, lets_one_displace_another=False).to_json()
    assert first["rounds"] == 3
    charges = [first]
    for number in (4, 7):
        cost = budget.round_cost(charges, round_number=number, lets_one_displace_another=False)
        charges.append(cost.to_json())
    assert [charge["rounds"] for charge in charges] == [3, 1, 3]
    seven = ExampleGaussianEpochs(4.0, "poisson", 0.5, 7, 2)
    assert budget.epsilon_of(charges) == central_epsilon([seven], delta=1e-5)
    card = budget.card(charges).to_json()
    assert card["rounds_done"] == 3
    assert [entry["rounds"] for entry in card["spending"]] == [7]
    assert [entry["rounds"] for entry in card["prior"]] == [4]


def test_a_task_whose_prior_spending_is_of_another_unit_is_refused(tmp_path) -> None:
    users = GaussianRounds(4.0, "poisson", 0.5, 3).to_json()
    with pytest.raises(TaskError, match="units example and user"):
        example_budget(tmp_path / "task", prior_spending=(users,))


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
