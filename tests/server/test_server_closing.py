"""What closing a round does with its sum: cohort, noise, optimizer, charge, in one process."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from server_helpers import Device, dyadic, make_plan, make_task, metrics

from server import optimizer
from server.aggregation import COUNTED, Upload, fold
from server.blobs import BlobStore
from server.budget import Budget
from server.closing import Closing, Outcome
from server.coordinator import Coordinator, OpenRound
from server.events import Reporter
from server.rounds import OPEN, Policy, Round
from server.store import Store
from server.task_folder import load_task
from tf_dpfl.privacy.accounting import central_epsilon
from tf_dpfl.privacy.mechanism import ExampleGaussianEpochs, GaussianRounds
from tf_dpfl.protocol.errors import WireError
from tf_dpfl.protocol.plan import Plan
from tf_dpfl.protocol.tensors import vector_from_bytes


@contextmanager
def closing_of(
    tmp_path: Path,
    plan: Plan,
    *,
    size: int = 6,
    max_epsilon: float | None = None,
    prior: tuple[GaussianRounds, ...] = (),
    steps: list[str] | None = None,
) -> Iterator[Closing]:
    """The parts that close rounds of `plan`; named steps are appended to `steps`."""
    folder, state = tmp_path / "task", tmp_path / "state"
    entries = tuple(mechanism.to_json() for mechanism in prior)
    manifest = make_task(folder, plan, size=size, prior_spending=entries)
    state.mkdir()
    store = Store(state / "server.sqlite", create=True)
    try:
        yield Closing(
            state=state,
            task=load_task(folder),
            store=store,
            blobs=BlobStore(state / "blobs"),
            budget=Budget(manifest, max_epsilon=max_epsilon),
            evaluator=None,
            clock=lambda: 100.0,
            on_step=(steps if steps is not None else []).append,
        )
    finally:
        store.close()


def settle(
    closing: Closing,
    number: int,
    vectors: list[np.ndarray],
    *,
    released: int,
    invited: int = 4,
    reports_per_round: int | None = None,
) -> Outcome:
    """Opens round `number`, takes `vectors` as its reports, and closes it."""
    round_ = Round(number, released, OPEN, bytes(32), None, 0.0, 1e12)
    closing.store.open_round(round_)
    uploads = [Upload(f"{i:032x}", f"{i}", vector) for i, vector in enumerate(vectors)]
    outcomes = fold(closing.store, closing.blobs, round_number=number, uploads=uploads)
    assert outcomes == [COUNTED] * len(vectors)
    return closing.settle(
        round_, invited=invited, reports_per_round=reports_per_round, reason="test"
    )


def weights(closing: Closing) -> np.ndarray:
    """The newest released model."""
    size = closing.task.manifest.layout.size
    return vector_from_bytes(closing.current_weights(), size=size)


def card(closing: Closing) -> dict[str, Any]:
    """The privacy card in the state folder."""
    tree: dict[str, Any] = json.loads((closing.state / "privacy.json").read_text())
    return tree


@pytest.mark.parametrize("reports", [2, 3, 4])
def test_the_sum_is_divided_by_the_public_cohort_however_many_report(
    tmp_path: Path, reports: int
) -> None:
    generator = np.random.default_rng(reports)
    vectors = [dyadic(generator, 6) for _ in range(reports)]
    with closing_of(tmp_path, make_plan()) as closing:
        assert settle(closing, 1, vectors, released=0).released
        # clients_per_round is 4; sums of dyadic vectors are exact.
        np.testing.assert_array_equal(weights(closing), np.sum(vectors, axis=0) / 4)


@pytest.mark.parametrize("reports", [0, 1])
def test_fewer_reports_than_the_smallest_cohort_release_and_charge_nothing(
    tmp_path: Path, reports: int
) -> None:
    with closing_of(tmp_path, make_plan(privacy__noise_multiplier=4.0)) as closing:
        outcome = settle(closing, 1, [np.ones(6, np.float32)] * reports, released=0)
        assert not outcome.released
        np.testing.assert_array_equal(weights(closing), np.zeros(6))
        assert closing.store.charges() == []


@pytest.mark.parametrize("name", ["sgd", "momentum", "adam"])
def test_the_optimizers_state_is_carried_from_round_to_round(tmp_path: Path, name: str) -> None:
    plan = make_plan(
        server__optimizer=name, server__learning_rate=0.5, server__rounds=3, server__epsilon=1e-3
    )
    generator = np.random.default_rng(5)
    state = optimizer.initial_state(plan.server, size=6)
    expected = np.zeros(6, np.float32)
    with closing_of(tmp_path, plan) as closing:
        for number in (1, 2, 3):
            vectors = [dyadic(generator, 6) for _ in range(4)]
            settle(closing, number, vectors, released=number - 1)
            average = np.sum(vectors, axis=0, dtype=np.float64) / 4
            state, expected = optimizer.apply(plan.server, state, weights=expected, average=average)
            np.testing.assert_allclose(weights(closing), expected, rtol=1e-6, atol=1e-7)


def test_the_servers_noise_is_the_multiplier_times_the_clip_norm(tmp_path: Path) -> None:
    size = 4000
    plan = make_plan(
        privacy__noise="server", privacy__noise_multiplier=3.0, privacy__clip_norm=0.25
    )
    zeros = [np.zeros(size, np.float32)] * 4
    with closing_of(tmp_path, plan, size=size) as closing:
        settle(closing, 1, zeros, released=0)
        first = weights(closing).astype(np.float64)
        settle(closing, 2, zeros, released=1)
        second = weights(closing) - first
    expected = 3.0 * 0.25 / 4
    for noise in (first, second):
        assert abs(noise.std() / expected - 1) < 5 / (2 * size) ** 0.5
    # Each round draws its own.
    assert abs(np.corrcoef(first, second)[0, 1]) < 5 / size**0.5


def test_noise_of_the_devices_is_not_added_again_by_the_server(tmp_path: Path) -> None:
    with closing_of(tmp_path, make_plan(privacy__noise_multiplier=3.0)) as closing:
        settle(closing, 1, [np.ones(6, np.float32)] * 4, released=0)
        np.testing.assert_array_equal(weights(closing), np.ones(6))


def test_a_round_is_charged_before_anything_of_its_model_is_computed(tmp_path: Path) -> None:
    plan, steps = make_plan(privacy__noise_multiplier=4.0), []
    with closing_of(tmp_path, plan, steps=steps) as closing:
        settle(closing, 1, [np.ones(6, np.float32)] * 4, released=0)
        assert [charge["rounds"] for charge in closing.store.charges()] == [1]
    assert steps.index("charged") < steps.index("blobs written")
    assert steps.index("card written") < steps.index("checkpoint written")


def test_the_card_is_on_disk_before_the_model_it_speaks_of(tmp_path: Path) -> None:
    plan = make_plan(privacy__noise_multiplier=4.0)
    with closing_of(tmp_path, plan) as closing:
        seen = []

        def look(step: str) -> None:
            if step == "checkpoint written":
                seen.append(card(closing)["rounds_done"])

        object.__setattr__(closing, "on_step", look)
        settle(closing, 1, [np.ones(6, np.float32)] * 4, released=0)
        settle(closing, 2, [np.ones(6, np.float32)] * 4, released=1)
    assert seen == [1, 2]


def test_a_round_beyond_the_budget_releases_nothing_and_ends_the_task(tmp_path: Path) -> None:
    plan = make_plan(privacy__noise_multiplier=4.0)
    one = GaussianRounds(4.0, "poisson", 1.0, 1)
    epsilon = central_epsilon([one], delta=plan.privacy.delta)
    with closing_of(tmp_path, plan, max_epsilon=epsilon * 1.01) as closing:
        assert settle(closing, 1, [np.ones(6, np.float32)] * 4, released=0).released
        assert not settle(closing, 2, [np.ones(6, np.float32)] * 4, released=1).released
        np.testing.assert_array_equal(weights(closing), np.ones(6))
        assert len(closing.store.charges()) == 1
        assert "epsilon" in str(closing.store.ended())


def test_a_round_closed_by_the_operators_count_is_charged_with_half_the_noise(
    tmp_path: Path,
) -> None:
    plan = make_plan(privacy__noise_multiplier=4.0)
    with closing_of(tmp_path, plan) as closing:
        three = [np.ones(6, np.float32)] * 3
        settle(closing, 1, three, released=0, reports_per_round=3)
        assert [charge["noise_multiplier"] for charge in closing.store.charges()] == [2.0]


def test_an_example_pays_for_failed_attempts_when_a_round_is_released(tmp_path: Path) -> None:
    plan = make_plan(
        privacy__unit="example",
        privacy__noise_multiplier=4.0,
        clients__population=8,
        server__rounds=4,
    )
    five = ExampleGaussianEpochs(4.0, "poisson", 0.5, 5, 1)
    budget = central_epsilon([five], delta=plan.privacy.delta)
    with closing_of(tmp_path, plan, max_epsilon=budget) as closing:
        ones = [np.ones(6, np.float32)] * 2
        assert settle(closing, 1, ones, released=0).released
        for number in (2, 3):
            assert not settle(closing, number, ones[:1], released=1).released
        assert settle(closing, 4, ones, released=1).released
        assert [charge["rounds"] for charge in closing.store.charges()] == [1, 3]
        tree = card(closing)
        assert tree["rounds_done"] == 2 and tree["unit"] == "example"
        four = central_epsilon([five.with_rounds(4)], delta=plan.privacy.delta)
        assert tree["central"]["epsilon"] == four
        assert not settle(closing, 5, ones[:1], released=2).released
        # The budget pays for five attempts; this is the sixth.
        assert not settle(closing, 6, ones, released=2).released
        assert "epsilon" in str(closing.store.ended())


def test_the_card_counts_prior_spending_usual_and_dearer_rounds(tmp_path: Path) -> None:
    plan = make_plan(privacy__noise_multiplier=4.0)
    prior = GaussianRounds(5.0, "poisson", 0.5, 7)
    with closing_of(tmp_path, plan, prior=(prior,)) as closing:
        ones = [np.ones(6, np.float32)] * 4
        settle(closing, 1, ones[:3], released=0, reports_per_round=3)
        settle(closing, 2, ones, released=1)
        spent = [
            prior,
            GaussianRounds(2.0, "poisson", 1.0, 1),
            GaussianRounds(4.0, "poisson", 1.0, 1),
        ]
        expected = central_epsilon(spent, delta=plan.privacy.delta)
        assert card(closing)["central"]["epsilon"] == pytest.approx(expected, rel=1e-6)
        assert metrics(closing.state)[-1]["central_epsilon"] == pytest.approx(expected, rel=1e-6)


def test_an_update_after_the_deadline_is_refused_though_the_round_is_not_closed_yet(
    tmp_path: Path,
) -> None:
    device = Device("0" * 32)
    now = [50.0]
    with closing_of(tmp_path, make_plan()) as closing:
        object.__setattr__(closing, "clock", lambda: now[0])
        round_ = Round(1, 0, OPEN, bytes(32), None, 0.0, 100.0)
        closing.store.open_round(round_)
        reporter = Reporter(as_json=True, stream=io.StringIO())
        coordinator = Coordinator(closing, Policy(start_when=4), reporter, poll_s=1.0)
        coordinator.open = OpenRound(round_, frozenset({device.id}), frozenset())

        async def is_wanted() -> bool:
            return await coordinator.expects_update(device.id, 1, "0" * 64)

        assert asyncio.run(is_wanted())
        now[0] = 100.0
        with pytest.raises(WireError) as refused:
            asyncio.run(is_wanted())
        assert refused.value.status == 410
        asyncio.run(coordinator.close())
