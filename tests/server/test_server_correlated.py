"""Correlated noise on the server: its covariance, what it remembers, who may report again."""

from __future__ import annotations

import asyncio
import io
import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from server_helpers import (
    ServerProcess,
    enroll_all,
    http,
    latest_weights,
    make_plan,
    make_task,
    metrics,
    read_tokens,
    running,
)
from test_server_closing import card, closing_of, settle, weights
from test_server_crash import put_until_down

from server import enrolments, schema
from server.aggregation import CLOSED, COUNTED, Upload, fold
from server.blobs import BlobStore
from server.closing import Closing
from server.coordinator import Coordinator, OpenRound
from server.events import Reporter
from server.noise import draw_noise, memory_rows
from server.rounds import OPEN, Policy, Round, check_policy, default_start_when
from server.separation import draw_cohort
from server.store import Store
from tf_dpfl.privacy.accounting import central_epsilon
from tf_dpfl.privacy.mechanism import BandedRounds, mechanism_of_plan
from tf_dpfl.protocol.errors import BudgetError, StateError, WireError
from tf_dpfl.protocol.plan import Plan

ROUNDS = 11


def correlated(mechanism: str, **changes: Any) -> Plan:
    """12 devices, 4 a round: 3 rounds of separation, noise of 2 clip norms of 0.5."""
    return make_plan(
        **{
            "clients__population": 12,
            "clients__sampling": "min_separation",
            "privacy__noise": "server",
            "privacy__mechanism": mechanism,
            "privacy__noise_multiplier": 2.0,
            "privacy__clip_norm": 0.5,
            "server__rounds": ROUNDS,
            **changes,
        }
    )


def noise_of_rounds(plan: Plan, *, size: int) -> np.ndarray:
    """The noise of `ROUNDS` rounds, float64 [rounds, size]."""
    rows, memory = [], None
    for index in range(1, ROUNDS + 1):
        drawn = draw_noise(plan, size=size, round_index=index, memory=memory)
        rows.append(drawn.noise)
        memory = drawn.memory
        assert memory is not None and len(memory) == memory_rows(plan, round_index=index)
    return np.stack(rows)


def covariance_of_bands(bands: int) -> np.ndarray:
    factor = np.zeros((ROUNDS, ROUNDS))
    for offset in range(bands):
        value = math.comb(2 * offset, offset) / 4**offset
        factor += np.diag(np.full(ROUNDS - offset, value), -offset)
    inverse = np.linalg.inv(factor)
    return inverse @ inverse.T


def covariance_of_tree() -> np.ndarray:
    """Least squares: each complete tree is estimated best from all nodes in it."""
    prefixes = np.zeros((ROUNDS, 0))
    index: dict[tuple[int, int], int] = {}
    for t in range(1, ROUNDS + 1):
        start = 0
        for level in reversed(range(t.bit_length())):
            if not t >> level & 1:
                continue
            rounds = range(start, start + (1 << level))
            nodes = [
                (below, number)
                for below in range(level + 1)
                for number in range(start >> below, (start + (1 << level)) >> below)
            ]
            # What each node says about the leaves, and the weights for the sum of them all.
            design = np.array([[leaf >> k == n for leaf in rounds] for k, n in nodes])
            weights = np.ones(len(rounds)) @ np.linalg.pinv(design.astype(np.float64))
            for node, weight in zip(nodes, weights):
                if node not in index:
                    index[node] = len(index)
                    prefixes = np.pad(prefixes, [(0, 0), (0, 1)])
                prefixes[t - 1, index[node]] = weight
            start += 1 << level
    residuals = np.diff(prefixes, axis=0, prepend=0)
    return residuals @ residuals.T


@pytest.mark.parametrize(("mechanism", "bands"), [("banded", 1), ("banded", 3), ("tree", None)])
def test_noise_has_the_covariance_of_the_mechanism_over_rounds(
    mechanism: str, bands: int | None
) -> None:
    size = 40_000
    expected = covariance_of_tree() if bands is None else covariance_of_bands(bands)
    changes = {} if bands is None else {"privacy__bands": bands}
    noise = noise_of_rounds(correlated(mechanism, **changes), size=size) / (2.0 * 0.5)
    tolerance = 5 * math.sqrt(2 / size) * expected.max()
    assert np.abs(noise @ noise.T / size - expected).max() < tolerance
    if bands != 1:  # independent noise would not pass
        assert np.abs(np.diag(np.diag(expected)) - expected).max() > 10 * tolerance


def test_memory_that_is_not_the_rounds_is_refused() -> None:
    plan = correlated("banded")
    with pytest.raises(ValueError, match="memory"):
        draw_noise(plan, size=3, round_index=4, memory=None)
    with pytest.raises(ValueError, match="memory"):
        draw_noise(plan, size=3, round_index=1, memory=np.zeros((1, 3)))


# --- Closing rounds -----------------------------------------------------------


@pytest.mark.parametrize("mechanism", ["banded", "tree"])
def test_released_models_carry_the_noise_and_the_store_what_it_remembers(
    tmp_path: Path, mechanism: str
) -> None:
    size, plan = 20_000, correlated(mechanism)
    zeros = [np.zeros(size, np.float32)] * 4
    models = [np.zeros(size)]
    with closing_of(tmp_path, plan, size=size) as closing:
        for number in range(1, ROUNDS + 1):
            settle(closing, number, zeros, released=number - 1)
            models.append(weights(closing).astype(np.float64))
            last = closing.store.last_released()
            assert last is not None and last.noise_blob in closing.store.blobs_in_use()
            closing.blobs.delete_all_but(closing.store.blobs_in_use())
        stated = card(closing)["central"]["epsilon"]
    noise = np.diff(models, axis=0) * plan.clients.clients_per_round / (2.0 * 0.5)
    expected = covariance_of_tree() if mechanism == "tree" else covariance_of_bands(3)
    tolerance = 6 * math.sqrt(2 / size) * expected.max()
    assert np.abs(noise @ noise.T / size - expected).max() < tolerance
    spent = [mechanism_of_plan(plan, rounds=ROUNDS)]
    assert stated == central_epsilon(spent, delta=plan.privacy.delta)


def test_every_round_is_charged_as_the_next_of_one_release(tmp_path: Path) -> None:
    plan = correlated("banded")
    with closing_of(tmp_path, plan) as closing:
        for number in range(1, 6):
            settle(closing, number, [np.zeros(6, np.float32)] * 4, released=number - 1)
            spent = [mechanism_of_plan(plan, rounds=number)]
            expected = central_epsilon(spent, delta=plan.privacy.delta)
            assert card(closing)["central"]["epsilon"] == expected
            assert card(closing)["rounds_done"] == number and not card(closing)["prior"]
        charges = closing.store.charges()
    assert [charge["first_round"] for charge in charges] == [1, 2, 3, 4, 5]
    assert all(charge["kind"] == "banded_rounds" and charge["rounds"] == 1 for charge in charges)


def test_spending_before_the_task_is_a_release_of_its_own(tmp_path: Path) -> None:
    plan = correlated("banded")
    prior = (BandedRounds(2.0, "min_separation", 1 / 3, 4, 3, 1, 3),)
    with closing_of(tmp_path, plan, prior=prior) as closing:  # type: ignore[arg-type]
        settle(closing, 1, [np.zeros(6, np.float32)] * 4, released=0)
        stated = card(closing)["central"]["epsilon"]
    spent = [*prior, mechanism_of_plan(plan, rounds=1)]
    assert stated == central_epsilon(spent, delta=plan.privacy.delta)
    assert stated > central_epsilon([prior[0].with_rounds(5)], delta=plan.privacy.delta)


def test_the_budget_stops_where_a_participation_begins(tmp_path: Path) -> None:
    plan = correlated("banded")
    limit = central_epsilon([mechanism_of_plan(plan, rounds=3)], delta=plan.privacy.delta)
    with closing_of(tmp_path, plan, max_epsilon=limit * (1 + 1e-9)) as closing:
        for number in range(1, 4):
            settle(closing, number, [np.zeros(6, np.float32)] * 4, released=number - 1)
        cost = closing.budget.round_cost(
            closing.store.charges(), round_number=4, lets_one_displace_another=False
        )
        with pytest.raises(BudgetError, match="max_epsilon"):
            closing.budget.epsilon_after(closing.store.charges(), cost)


# --- Separation ---------------------------------------------------------------


def report(closing: Closing, number: int, devices: list[str], *, released: int) -> list[str]:
    """Opens round `number` and lets `devices` report, whoever was drawn."""
    closing.store.open_round(Round(number, released, OPEN, bytes(32), None, 0.0, 1e12))
    uploads = [Upload(device, device, np.zeros(6, np.float32)) for device in devices]
    return fold(closing.store, closing.blobs, round_number=number, uploads=uploads, separation=3)


def close(closing: Closing, number: int) -> None:
    round_ = closing.store.round(number)
    assert round_ is not None
    closing.settle(round_, invited=4, reports_per_round=None, reason="test")


def test_a_report_that_comes_too_early_is_refused_whoever_invited_its_device(
    tmp_path: Path,
) -> None:
    a, b, c, d = (f"{i:032x}" for i in range(4))
    with closing_of(tmp_path, correlated("banded")) as closing:
        assert report(closing, 1, [a, b], released=0) == [COUNTED, COUNTED]
        close(closing, 1)
        # Rounds 2 and 3 are too early for the first two, round 4 is not.
        assert report(closing, 2, [a, c, d], released=1) == [CLOSED, COUNTED, COUNTED]
        close(closing, 2)
        # A failed attempt moves nothing and keeps nobody away.
        assert report(closing, 3, [b, "e" * 32], released=2) == [CLOSED, COUNTED]
        closing.store.abort(3, reports=1, reason="test", ends_task=False)
        assert report(closing, 4, ["e" * 32, "f" * 32], released=2) == [COUNTED, COUNTED]
        close(closing, 4)
        assert report(closing, 5, [a, b, c, "e" * 32], released=3) == [
            COUNTED,
            COUNTED,
            CLOSED,
            CLOSED,
        ]


def test_the_coordinator_has_early_reports_refused(tmp_path: Path) -> None:
    a, b = f"{0:032x}", f"{1:032x}"
    plan = correlated("banded")
    with closing_of(tmp_path, plan) as closing:
        report(closing, 1, [a, "c" * 32], released=0)
        close(closing, 1)
        # Planted: a draw that holds a device of the round before.
        round_ = Round(2, 1, OPEN, bytes(32), frozenset({a, b}), 0.0, 1e12)
        closing.store.open_round(round_)
        reporter = Reporter(as_json=True, stream=io.StringIO())

        async def both() -> list[Any]:
            coordinator = Coordinator(closing, Policy(start_when=12), reporter, poll_s=1.0)
            coordinator.open = OpenRound(round_, frozenset({a, b}), frozenset())
            run = asyncio.Event()
            life = asyncio.create_task(coordinator.run(run))
            uploads = [Upload(device, device, np.zeros(6, np.float32)) for device in (a, b)]
            try:
                return await asyncio.gather(
                    *(coordinator.submit(2, upload) for upload in uploads), return_exceptions=True
                )
            finally:
                run.set()
                await life
                await coordinator.close()

        early, in_time = asyncio.run(both())
    assert isinstance(early, WireError) and early.status == 410
    assert in_time is True


def test_without_the_separation_the_early_report_would_count(tmp_path: Path) -> None:
    """The test above fails with the check taken out."""
    a = f"{0:032x}"
    with closing_of(tmp_path, correlated("banded")) as closing:
        report(closing, 1, [a, "b" * 32], released=0)
        close(closing, 1)
        closing.store.open_round(Round(2, 1, OPEN, bytes(32), None, 0.0, 1e12))
        uploads = [Upload(a, a, np.zeros(6, np.float32))]
        assert fold(closing.store, closing.blobs, round_number=2, uploads=uploads) == [COUNTED]


def test_devices_are_drawn_from_those_that_may_report_over_long_runs(tmp_path: Path) -> None:
    plan = correlated("banded", server__rounds=60)
    last: dict[str, int] = {}
    with closing_of(tmp_path, plan) as closing:
        store = closing.store
        with store.transaction() as connection:
            for i in range(12):
                connection.execute(
                    schema.devices.insert().values(
                        device_id=f"{i:032x}", public_key="", enrolled_at_s=0.0
                    )
                )
        assert len(enrolments.device_keys(store)) == 12
        generator = np.random.default_rng(1)
        for version in range(60):
            drawn = draw_cohort(plan, store, model_version=version)
            assert drawn is not None and len(drawn) == 4
            # Some of them stay away: they may be drawn again at once.
            devices = sorted(drawn)[: int(generator.integers(2, 5))]
            assert report(closing, version + 1, devices, released=version) == [COUNTED] * len(
                devices
            )
            close(closing, version + 1)
            for device in devices:
                assert version - last.get(device, -3) >= 3
                last[device] = version
    assert len(last) == 12


def test_operators_choices_that_the_accounting_does_not_cover_are_refused() -> None:
    plan = correlated("banded")
    assert default_start_when(plan) == 12
    with pytest.raises(StateError, match="--start-when 8 must be 12"):
        check_policy(Policy(start_when=8), plan)
    with pytest.raises(StateError, match="displaces another"):
        check_policy(Policy(start_when=12, reports_per_round=3), plan)
    check_policy(Policy(start_when=12), plan)


def test_a_state_of_before_there_was_correlated_noise_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "server.sqlite"
    store = Store(path, create=True)
    store.bind_task("d")
    with store.transaction() as connection:
        for column in ("noise_blob", "next_clip_norm"):
            connection.exec_driver_sql(f"ALTER TABLE rounds DROP COLUMN {column}")
        connection.exec_driver_sql("PRAGMA user_version=1")
    store.close()
    store = Store(path, create=False)
    store.bind_task("d")
    assert store.blobs_in_use() == set() and store.last_released() is None
    store.close()


# --- A whole server -----------------------------------------------------------


CRASHING_IN_ROUND_THREE = """
import os, sys
from server import cli, service
serve, seen = service.serve, []
def crash(step):
    seen.append(step)
    if seen.count({step!r}) == 3:
        os._exit(7)
service.serve = lambda settings, reporter: serve(settings, reporter, on_step=crash)
sys.exit(cli.main())
"""


@pytest.mark.parametrize("mechanism", ["banded", "tree"])
@pytest.mark.parametrize("step", ["blobs written", "computed"])
def test_a_crash_between_draw_and_release_keeps_noise_and_memory_together(
    tmp_path: Path, mechanism: str, step: str
) -> None:
    """Devices without anything to report, in turns: what moves the model is the noise alone."""
    size, rounds = 4000, 6
    plan = correlated(mechanism, clients__population=8, server__rounds=rounds)
    manifest = make_task(tmp_path / "task", plan, size=size)
    state, zeros = tmp_path / "state", np.zeros((8, size), np.float32)
    options = ("--tokens", "8", "--exit-when-done", "--linger", "0.1")
    program = CRASHING_IN_ROUND_THREE.format(step=step)
    server = ServerProcess(tmp_path / "task", state, *options, program=program)
    try:
        with http(server.url) as client:
            devices = enroll_all(client, manifest, read_tokens(state))
        put_until_down(server, devices, zeros)
    finally:
        server.close()
    assert len(metrics(state)) == 2
    with running(tmp_path / "task", state, *options) as server:
        put_until_down(server, devices, zeros)
        assert server.process.returncode == 0, server.errors()
    assert [line["round"] for line in metrics(state)] == [1, 2, 3, 4, 5, 6]
    total = latest_weights(state).astype(np.float64) * plan.clients.clients_per_round
    if mechanism == "banded":
        factor = np.eye(rounds) + 0.5 * np.diag(np.ones(rounds - 1), -1)  # 2 bands
        expected = float(np.linalg.norm(np.ones(rounds) @ np.linalg.inv(factor)))
    else:  # a tree of four leaves and one of two
        expected = math.sqrt(1 / (2 - 1 / 4) + 1 / (2 - 1 / 2))
    # Independent noise would have the root of six, noise drawn anew in round 3 more as well.
    assert abs(total.std() / (2.0 * 0.5 * expected) - 1) < 5 / (2 * size) ** 0.5
    store = Store(state / "server.sqlite", create=False)
    last = store.last_released()
    cohorts = [set(store.report_digests(number)) for number in range(1, rounds + 1)]
    store.close()
    # 2 rounds of separation: nobody reports twice in a row.
    assert all(cohorts) and not any(a & b for a, b in itertools.pairwise(cohorts))
    assert last is not None and last.noise_blob is not None
    # Kept, and private to the server: named in no file that it publishes.
    BlobStore(state / "blobs").get(last.noise_blob)
    published = [state / "latest.json", state / "privacy.json", state / "metrics.jsonl"]
    assert all(last.noise_blob not in path.read_text() for path in published)
    epsilon = json.loads((state / "privacy.json").read_text())["central"]["epsilon"]
    spent = [mechanism_of_plan(plan, rounds=rounds)]
    assert epsilon == central_epsilon(spent, delta=plan.privacy.delta)
