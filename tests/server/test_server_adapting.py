"""A clip norm that moves with released rounds: its way, its durability, whom it believes."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from server_helpers import (
    Device,
    ServerProcess,
    dyadic,
    enroll_all,
    http,
    make_plan,
    make_task,
    metrics,
    read_tokens,
    running,
)
from test_server_closing import card, closing_of, settle, weights
from test_server_crash import crashing

from server.adapting import bounded_report, clip_norm_after, clip_norm_after_sum
from server.closing import Closing
from server.coordinator import Coordinator
from server.events import Reporter, sentence
from server.rounds import Policy
from server.status import operator_status
from server.store import Store
from tf_dpfl.protocol import wire
from tf_dpfl.protocol.clip_norms import next_clip_norm
from tf_dpfl.protocol.errors import StateError, WireError
from tf_dpfl.protocol.plan import Plan

SIGMAS = 5.0
RATE, TARGET = 0.7, 0.3


def adapting(**changes: Any) -> Plan:
    return make_plan(
        **{
            "privacy__adaptive_clipping": True,
            "privacy__clip_norm": 0.25,
            "privacy__clip_learning_rate": RATE,
            "privacy__target_quantile": TARGET,
            "server__rounds": 4,
            **changes,
        }
    )


def reports(updates: list[np.ndarray], counts: list[float]) -> list[np.ndarray]:
    return [np.append(u, np.float32(c)) for u, c in zip(updates, counts, strict=True)]


def moved(clip_norm: float, counts: list[float]) -> float:
    """By the formula of the paper, the divisor being the public cohort of 4."""
    return clip_norm * math.exp(-RATE * (sum(counts) / 4 + 0.5 - TARGET))


# --- Closing rounds -----------------------------------------------------------


COUNTS = [[0.5, -0.5, -0.5, 0.5], [-0.5, -0.5], [3.25, -0.5, 0.5]]


def test_sums_counts_and_clip_norms_are_those_of_a_readable_loop(tmp_path: Path) -> None:
    generator = np.random.default_rng(7)
    model, clip_norm, clip_norms = np.zeros(6), 0.25, []
    with closing_of(tmp_path, adapting()) as closing:
        for number, counts in enumerate(COUNTS, start=1):
            updates = [dyadic(generator, 6) for _ in counts]
            outcome = settle(closing, number, reports(updates, counts), released=number - 1)
            assert outcome.released
            model += np.sum(updates, axis=0) / 4
            clip_norms.append(clip_norm)
            clip_norm = moved(clip_norm, counts)
            np.testing.assert_allclose(weights(closing), model, rtol=1e-6)
            assert closing.current_clip_norm() == pytest.approx(clip_norm, rel=1e-6)
        lines = metrics(closing.state)
        assert [line["clip_norm"] for line in lines] == pytest.approx(clip_norms, rel=1e-6)
        assert lines[0]["bytes_per_update"] == 4 * 7
        assert "clip norm of each round" in card(closing)["released"]
        assert card(closing)["adaptive_clipping"]["target_quantile"] == TARGET


def test_a_round_that_is_not_released_moves_nothing(tmp_path: Path) -> None:
    with closing_of(tmp_path, adapting()) as closing:
        alone = reports([np.ones(6, np.float32)], [0.5])
        assert not settle(closing, 1, alone, released=0).released
        assert closing.current_clip_norm() == 0.25
        settle(closing, 2, reports([np.ones(6, np.float32)] * 2, [0.5, 0.5]), released=0)
        after = closing.current_clip_norm()
        assert after == pytest.approx(moved(0.25, [0.5, 0.5]))
        assert not settle(closing, 3, alone, released=1).released
        assert closing.current_clip_norm() == after


class Crash(Exception):
    """In the place of a process that ends."""


@pytest.mark.parametrize("step", ["charged", "blobs written", "computed", "latest written"])
def test_until_a_round_is_released_its_clip_norm_is_not_the_next_one(
    tmp_path: Path, step: str
) -> None:
    """Whatever it computes anew after a crash is what it would have computed."""
    with closing_of(tmp_path, adapting()) as closing:

        def crash(name: str) -> None:
            if name == step:
                raise Crash

        dying = Closing(**{**closing.__dict__, "on_step": crash})
        with pytest.raises(Crash):
            settle(dying, 1, reports([np.ones(6, np.float32)] * 2, [0.5, -0.5]), released=0)
        assert closing.current_clip_norm() == 0.25
        assert closing.advance(1).released
        assert closing.current_clip_norm() == pytest.approx(moved(0.25, [0.5, -0.5]))
        assert metrics(closing.state)[0]["clip_norm"] == 0.25


def coordinator_of(closing: Closing) -> Coordinator:
    reporter = Reporter(as_json=True, stream=io.StringIO())
    return Coordinator(closing, Policy(start_when=4), reporter, poll_s=0.05)


def test_a_new_process_and_its_coordinator_know_the_same_clip_norm(tmp_path: Path) -> None:
    with closing_of(tmp_path, adapting()) as closing:
        settle(closing, 1, reports([np.ones(6, np.float32)] * 2, [0.5, 0.25]), released=0)
        before = closing.current_clip_norm()
        closing.store.close()
        again = Closing(
            **{**closing.__dict__, "store": Store(closing.state / "server.sqlite", create=False)}
        )
        assert coordinator_of(again).clip_norm == again.current_clip_norm() == before != 0.25
        again.store.close()


def test_noise_of_the_server_follows_the_clip_norm_of_the_round(tmp_path: Path) -> None:
    """v clip norms, v = (z^-2 - (2 s)^-2)^(-1/2): the count takes its part of z."""
    size = 4000
    plan = adapting(
        privacy__noise="server",
        privacy__noise_multiplier=3.0,
        privacy__clip_count_stddev=2.0,
        privacy__clip_norm=1e-3,
    )
    expected = (3.0**-2 - 4.0**-2) ** -0.5 / 4
    nothing = [np.zeros(size + 1, np.float32)] * 4
    with closing_of(tmp_path, plan, size=size) as closing:
        for number in (1, 2, 3):
            clip_norm, before = closing.current_clip_norm(), weights(closing)
            assert clip_norm is not None
            for report in nothing:
                report[-1] = 0.5
            assert settle(closing, number, nothing, released=number - 1).released
            noise = weights(closing).astype(np.float64) - before
            assert abs(noise.std() / (expected * clip_norm) - 1) < SIGMAS / math.sqrt(2 * size)
        assert closing.current_clip_norm() != pytest.approx(clip_norm, rel=1e-3)


def test_the_server_adds_the_counts_noise_where_it_is_trusted_and_only_there() -> None:
    changes = {"privacy__noise_multiplier": 1.0, "privacy__clip_count_stddev": 2.0}
    on_devices = adapting(**changes)
    assert clip_norm_after_sum(on_devices, 1.0, unclipped=1.0) == pytest.approx(moved(1.0, [1.0]))
    plan = adapting(**changes, privacy__noise="server")
    steps = [math.log(clip_norm_after_sum(plan, 1.0, unclipped=1.0)) for _ in range(2000)]
    expected, stddev = -RATE * (1.0 / 4 + 0.5 - TARGET), RATE * 2.0 / 4
    assert abs(np.mean(steps) - expected) < SIGMAS * stddev / math.sqrt(2000)
    assert abs(np.std(steps) / stddev - 1) < SIGMAS / math.sqrt(2 * 2000)


def test_a_plan_that_fixes_the_clip_norm_keeps_its_reports_and_metrics(tmp_path: Path) -> None:
    with closing_of(tmp_path, make_plan()) as closing:
        settle(closing, 1, [np.ones(6, np.float32)] * 2, released=0)
        assert closing.current_clip_norm() is None
        assert coordinator_of(closing).clip_norm is None
        assert "clip_norm" not in metrics(closing.state)[0]


def test_a_row_without_its_clip_norm_is_not_guessed(tmp_path: Path) -> None:
    with closing_of(tmp_path, adapting()) as closing:
        settle(closing, 1, reports([np.ones(6, np.float32)] * 2, [0.5, 0.5]), released=0)
        for value in ("NULL", "0", "1e13", "'much'"):
            with closing.store.transaction() as connection:
                connection.exec_driver_sql(f"UPDATE rounds SET next_clip_norm = {value}")
            with pytest.raises(StateError, match="next_clip_norm=.*backup"):
                closing.current_clip_norm()


def test_a_state_of_before_clip_norms_could_move_goes_on(tmp_path: Path) -> None:
    with closing_of(tmp_path, make_plan()) as closing:
        settle(closing, 1, [np.ones(6, np.float32)] * 2, released=0)
        path = closing.state / "server.sqlite"
        with closing.store.transaction() as connection:
            connection.exec_driver_sql("ALTER TABLE rounds DROP COLUMN next_clip_norm")
            connection.exec_driver_sql("PRAGMA user_version=2")
        closing.store.close()
        store = Store(path, create=False)
        assert store.released_rounds() == 1
        assert clip_norm_after(closing.task.manifest.plan, store.last_released()) is None
        store.close()


# --- Reports ------------------------------------------------------------------


def test_a_report_is_bounded_by_the_clip_norm_of_its_round() -> None:
    plan = adapting(privacy__noise="server")
    report = np.append(np.full(4, 0.5, np.float32), np.float32(-0.5))  # norm 1
    assert bounded_report(report, plan, clip_norm=1.0) is report
    with pytest.raises(WireError, match=r"clip_norm=0\.25") as refused:
        bounded_report(report, plan, clip_norm=0.25)
    assert refused.value.status == 422
    longer = report * np.float32(1 + 5e-7)
    longer[-1] = -0.5
    added = bounded_report(longer, plan, clip_norm=1.0)
    assert np.linalg.norm(added[:-1].astype(np.float64)) <= 1 and added[-1] == -0.5


@pytest.mark.parametrize("count", [0.0, 0.75, -1e6, 1e30])
def test_a_count_that_no_device_would_send_is_refused(count: float) -> None:
    """Of noise on devices only what the noise cannot be; of a bare half all but it."""
    report = np.append(np.zeros(4, np.float32), np.float32(count))
    with pytest.raises(WireError, match="count") as refused:
        bounded_report(report, adapting(privacy__noise="server"), clip_norm=0.25)
    assert refused.value.status == 422
    noisy = adapting(privacy__noise_multiplier=1.0, privacy__clip_count_stddev=2.0)
    if abs(count) < 1:
        assert bounded_report(report, noisy, clip_norm=0.25) is report
    else:
        with pytest.raises(WireError, match="count"):
            bounded_report(report, noisy, clip_norm=0.25)


# --- A whole server -----------------------------------------------------------


def start(client: Any, manifest: Any, state: Path) -> list[Device]:
    devices = enroll_all(client, manifest, read_tokens(state))
    for device in devices:
        device.wait_for(client, "train")
    return devices


OPTIONS = ("--tokens", "4", "--start-when", "4")
UPDATE = np.full(6, 0.125, np.float32)
WITH_ONE_CLIPPED = [0.5, 0.5, -0.5, 0.5]


def test_devices_are_told_the_rounds_clip_norm_and_a_restart_tells_the_same(
    tmp_path: Path,
) -> None:
    manifest = make_task(tmp_path / "task", adapting())
    state, told = tmp_path / "state", []
    expected = 0.25
    devices: list[Device] = []
    for number in (1, 2):  # a process for each round
        with running(tmp_path / "task", state, *OPTIONS) as server, http(server.url) as client:
            devices = devices or start(client, manifest, state)
            for device, count in zip(devices, WITH_ONE_CLIPPED, strict=True):
                answer = device.wait_for(client, "train")
                told.append(answer.clip_norm)
                for repeated in (False, True):  # counted once, whatever is sent again
                    sent = device.put(client, answer.round_number, np.append(UPDATE, count))
                    assert sent.json() == {"accepted": True, "repeated": repeated}
            expected = moved(expected, WITH_ONE_CLIPPED)
            done = devices[0].wait_for(client, "train")
            assert done.clip_norm == pytest.approx(expected, rel=1e-6)
            public = client.get(wire.STATUS_PATH).json()
            assert public["privacy"]["clip_norm"] == done.clip_norm
            assert [line["clip_norm"] for line in public["rounds"]] == told[::4]
            assert f"{done.clip_norm:.3g}" in client.get("/").text
            event = server.wait_for_event("round")
            assert event["clip_norm"] == told[4 * (number - 1)]
            assert f"clip norm {event.pop('clip_norm'):.3g}, " in sentence(
                event.pop("event"), {**event, "clip_norm": told[4 * (number - 1)]}
            )
            assert server.stop() == 0
            assert operator_status(state)["clip_norm"] == done.clip_norm
    assert told[:4] == [0.25] * 4 and len(set(told[4:])) == 1 and told[4] != 0.25
    assert [line["clip_norm"] for line in metrics(state)] == told[::4]


def test_reports_without_a_count_or_with_an_absurd_one_are_not_added(tmp_path: Path) -> None:
    plan = adapting(privacy__noise="server", server__rounds=1)
    manifest = make_task(tmp_path / "task", plan)
    state = tmp_path / "state"
    options = (*OPTIONS, "--exit-when-done", "--linger", "0.1")
    with running(tmp_path / "task", state, *options) as server, http(server.url) as client:
        devices = start(client, manifest, state)
        zeros = np.zeros(6, np.float32)
        for report, status, match in (
            (zeros, 400, "24 bytes, this task needs 28"),
            (np.zeros(8, np.float32), 413, "this task needs 28"),
            (np.append(zeros, np.float32(np.nan)), 422, "NaN"),
            (np.append(zeros, np.float32(0.25)), 422, "count"),
            (np.append(zeros + 1, np.float32(0.5)), 422, "clip_norm=0.25"),
        ):
            refused = devices[0].put(client, 1, report)
            assert (refused.status_code, match in refused.json()["error"]) == (status, True)
        for device in devices:
            assert device.put(client, 1, np.append(zeros, np.float32(0.5))).json()["accepted"]
        assert server.process.wait(30) == 0
    store = Store(state / "server.sqlite", create=False)
    last = store.last_released()
    store.close()
    assert last is not None and last.next_clip_norm == next_clip_norm(plan, 0.25, unclipped=2.0)


def test_a_round_of_a_fixed_clip_norm_names_none(tmp_path: Path) -> None:
    manifest = make_task(tmp_path / "task", make_plan())
    with (
        running(tmp_path / "task", tmp_path / "state", *OPTIONS) as server,
        http(server.url) as client,
    ):
        device, *_ = start(client, manifest, tmp_path / "state")
        answer = device.request(client, "POST", wire.CHECKIN_PATH).json()
        assert set(answer) == {"state", "round_number", "weights_sha256", "closes_in_s"}
        public = client.get(wire.STATUS_PATH).json()
        assert "clip_norm" not in public["privacy"] and "clip norm" not in client.get("/").text
        assert operator_status(tmp_path / "state")["clip_norm"] == 1.0


def test_a_kill_loses_no_count_and_counts_none_twice(tmp_path: Path) -> None:
    manifest = make_task(tmp_path / "task", adapting())
    state = tmp_path / "state"
    with crashing(tmp_path / "task", state, *OPTIONS, step="charged") as server:
        put_all(server, manifest, state)
    with running(tmp_path / "task", state, *OPTIONS) as server:
        server.wait_for_event("round_opened")
    store = Store(state / "server.sqlite", create=False)
    last = store.last_released()
    store.close()
    expected = moved(0.25, WITH_ONE_CLIPPED)
    assert last is not None and last.next_clip_norm == pytest.approx(expected, rel=1e-6)
    assert json.loads((state / "privacy.json").read_text())["rounds_done"] == 1


def put_all(server: ServerProcess, manifest: Any, state: Path) -> None:
    """Everyone's report of the first round, after which the server goes down."""
    with http(server.url) as client:
        for device, count in zip(start(client, manifest, state), WITH_ONE_CLIPPED):
            device.put(client, 1, np.append(UPDATE, np.float32(count)))
    server.process.wait(30)
