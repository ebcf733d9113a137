"""A task's life: deadlines, draws, budgets, restarts and exit statuses of the real command."""

from __future__ import annotations

import contextlib
import io
import json
import signal
import sqlite3
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from server_helpers import (
    ROOT,
    Device,
    enroll_all,
    http,
    latest_weights,
    make_plan,
    make_task,
    metrics,
    read_tokens,
    running,
)

from server.cli import main
from server.store import Store
from tf_dpfl.protocol import wire

ONES = np.ones(6, np.float32)


@dataclass(frozen=True)
class Done:
    returncode: int
    stdout: str
    stderr: str


def command(*arguments: str) -> Done:
    """The command inside this process: what it returns and prints."""
    out, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        try:
            status = main(arguments)
        except SystemExit as end:  # argparse's way out
            status = int(end.code or 0)
    return Done(status, out.getvalue(), errors.getvalue())


def test_two_rounds_end_to_end_and_nothing_of_tensorflow(tmp_path: Path) -> None:
    manifest = make_task(tmp_path / "task", make_plan())
    state = tmp_path / "state"
    options = ("--tokens", "4", "--start-when", "4", "--exit-when-done")
    with running(tmp_path / "task", state, *options) as server:
        url = server.url
        assert (state / "url.txt").read_text().strip() == url
        with http(server.url) as client:
            devices = enroll_all(client, manifest, read_tokens(state))
            for number in (1, 2):
                for value, device in enumerate(devices, start=1):
                    assert device.wait_for(client, "train").round_number == number
                    assert device.put(client, number, value * ONES).status_code == 200
            for device in devices:
                device.wait_for(client, "done")
        assert server.process.wait(30) == 0
        assert [event["round"] for event in server.events("round")] == [1, 2]
        assert server.events("done")
        assert server.errors() == ""
    # Each round adds (1 + 2 + 3 + 4) / clients_per_round.
    np.testing.assert_array_equal(latest_weights(state), 5 * ONES)
    lines = metrics(state)
    assert [(line["round"], line["reports"]) for line in lines] == [(1, 4), (2, 4)]
    assert lines[0]["bytes_received"] == 4 * manifest.layout.nbytes
    assert lines[0]["central_epsilon"] is None  # no noise: no finite epsilon
    card = json.loads((state / "privacy.json").read_text())
    assert card["version"] == 1
    assert sorted(path.name for path in (state / "checkpoints").iterdir()) == [
        "round_000000.bin",
        "round_000001.bin",
        "round_000002.bin",
    ]
    loaded = subprocess.run(
        [sys.executable, "-c", "import sys, server.service, server.status; print(*sys.modules)"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    for name in ("tensorflow", "keras", "tensorflow_federated", "mobile_client"):
        assert name not in loaded


def test_a_round_below_the_smallest_cohort_is_aborted_and_releases_nothing(
    tmp_path: Path,
) -> None:
    manifest = make_task(tmp_path / "task", make_plan())
    state = tmp_path / "state"
    options = ("--tokens", "4", "--start-when", "4", "--round-deadline", "1.5")
    with running(tmp_path / "task", state, *options) as server, http(server.url) as client:
        devices = enroll_all(client, manifest, read_tokens(state))
        first = devices[0].wait_for(client, "train")
        assert 0 < first.closes_in_s <= 1.5
        devices[0].put(client, first.round_number, ONES)
        aborted = server.wait_for_event("aborted")
        assert aborted["reports"] == 1
        assert not metrics(state)
        late = devices[0].put(client, first.round_number, ONES)
        assert late.status_code == 410  # counted nowhere: not "repeated"
        # The same model again, under a new number, closed at the deadline with two of four.
        accepted: list[bool] = []
        while not all(accepted) or not accepted:  # a slow machine may miss a deadline
            second = devices[0].wait_for(client, "train")
            assert second.weights_sha256 == first.weights_sha256
            assert second.round_number > first.round_number
            answers = [device.put(client, second.round_number, ONES) for device in devices[:2]]
            accepted = [answer.status_code == 200 for answer in answers]
        done = server.wait_for_event("round")
        assert (done["round"], done["reports"]) == (1, 2)
        assert done["round_number"] == second.round_number
        assert server.stop() == 0
    # Divided by the public cohort of 4, not by the 2 that reported.
    np.testing.assert_array_equal(latest_weights(state), 0.5 * ONES)
    store = Store(state / "server.sqlite", create=False)
    assert store.counts()["charged_rounds"] == 1
    store.close()


def test_fixed_sampling_admits_exactly_the_drawn_devices(tmp_path: Path) -> None:
    plan = make_plan(clients__population=6, clients__clients_per_round=3, clients__sampling="fixed")
    manifest = make_task(tmp_path / "task", plan)
    state = tmp_path / "state"
    with running(tmp_path / "task", state, "--tokens", "6") as server, http(server.url) as client:
        tokens = read_tokens(state)
        devices = enroll_all(client, manifest, tokens[:5])
        assert all(device.checkin(client).state == "wait" for device in devices)
        assert not server.events("round_opened")  # not the whole population yet
        devices += enroll_all(client, manifest, tokens[5:])
        server.wait_for_event("round_opened")
        states = [device.checkin(client).state for device in devices]
        assert sorted(states) == ["train"] * 3 + ["wait"] * 3
        for device, told in zip(devices, states, strict=True):
            weights = device.request(client, "GET", wire.weights_path(1))
            answer = device.put(client, 1, ONES)
            expected = 200 if told == "train" else 403
            assert (weights.status_code, answer.status_code) == (expected, expected)
        assert server.wait_for_event("round")["reports"] == 3


def test_poisson_sampling_refuses_devices_that_were_not_drawn(tmp_path: Path) -> None:
    plan = make_plan(clients__population=40, clients__clients_per_round=20, server__rounds=3)
    manifest = make_task(tmp_path / "task", plan)
    state = tmp_path / "state"
    options = ("--tokens", "40", "--start-when", "40")
    with running(tmp_path / "task", state, *options) as server, http(server.url) as client:
        devices = enroll_all(client, manifest, read_tokens(state))
        drawn = []
        for number in (1, 2):
            devices[0].wait_for(client, "train", "wait")
            while len(server.events("round_opened")) < number:
                time.sleep(0.01)
            invited = {d.id for d in devices if d.checkin(client).state == "train"}
            assert len(invited) == server.events("round_opened")[number - 1]["invited"]
            drawn.append(invited)
            for device in sorted(devices, key=lambda d: d.id in invited):
                expected = 200 if device.id in invited else 403
                assert device.put(client, number, ONES).status_code == expected
        assert drawn[0] != drawn[1]


def test_reports_per_round_closes_early_and_is_charged_dearer(tmp_path: Path) -> None:
    manifest = make_task(tmp_path / "task", make_plan(privacy__noise_multiplier=4.0))
    state = tmp_path / "state"
    options = ("--tokens", "4", "--start-when", "4", "--reports-per-round", "3")
    with running(tmp_path / "task", state, *options) as server, http(server.url) as client:
        devices = enroll_all(client, manifest, read_tokens(state))
        devices[0].wait_for(client, "train")
        for device in devices[:3]:
            assert device.put(client, 1, ONES).status_code == 200
        assert server.wait_for_event("round")["reports"] == 3
        assert devices[3].put(client, 1, ONES).status_code == 410
    store = Store(state / "server.sqlite", create=False)
    assert [charge["noise_multiplier"] for charge in store.charges()] == [2.0]
    store.close()


def test_a_restart_with_another_target_does_not_change_what_an_open_round_costs(
    tmp_path: Path,
) -> None:
    manifest = make_task(tmp_path / "task", make_plan(privacy__noise_multiplier=4.0))
    state = tmp_path / "state"
    options = ("--start-when", "4", "--reports-per-round", "3")
    first = running(tmp_path / "task", state, "--tokens", "4", *options)
    with first as server, http(server.url) as client:
        devices = enroll_all(client, manifest, read_tokens(state))
        devices[0].wait_for(client, "train")
        for device in devices[:2]:
            assert device.put(client, 1, ONES).status_code == 200
    with running(tmp_path / "task", state, "--start-when", "4") as server:
        with http(server.url) as client:
            devices[2].wait_for(client, "train")
            assert devices[2].put(client, 1, ONES).status_code == 200
        assert server.wait_for_event("round")["reports"] == 3
    store = Store(state / "server.sqlite", create=False)
    assert store.charges()[0]["noise_multiplier"] == 2.0
    store.close()


def test_the_budget_stops_the_task_before_devices_train_in_vain(tmp_path: Path) -> None:
    plan = make_plan(privacy__noise_multiplier=4.0, server__rounds=50)
    manifest = make_task(tmp_path / "task", plan)
    state = tmp_path / "state"
    # Room for two rounds: epsilon of the Gaussian at z = 4, q = 1 grows with their number.
    from server.budget import Budget

    budget = Budget(manifest, max_epsilon=None)
    cost = budget.round_cost([], round_number=1, lets_one_displace_another=False).to_json()
    limit = (budget.epsilon_of([cost] * 2) + budget.epsilon_of([cost] * 3)) / 2
    options = ("--tokens", "4", "--start-when", "4", "--max-epsilon", str(limit))
    with running(
        tmp_path / "task", state, *options, "--exit-when-done", "--linger", "20"
    ) as server:
        with http(server.url) as client:
            devices = enroll_all(client, manifest, read_tokens(state))
            for number in (1, 2):
                for device in devices:
                    device.wait_for(client, "train")
                    device.put(client, number, ONES)
            for device in devices:
                device.wait_for(client, "done")
        assert server.process.wait(30) == 0
        done = server.events("done")[0]
        assert done["released_rounds"] == 2
        assert "epsilon" in done["reason"]
        spent = [event["central_epsilon"] for event in server.events("round")]
        assert 0 < spent[0] < spent[1] <= limit
    assert len(metrics(state)) == 2


def test_a_restart_keeps_the_open_round_its_reports_and_its_deadline(tmp_path: Path) -> None:
    manifest = make_task(tmp_path / "task", make_plan())
    state = tmp_path / "state"
    options = ("--tokens", "4", "--start-when", "4", "--round-deadline", "500")
    with running(tmp_path / "task", state, *options) as server, http(server.url) as client:
        devices = enroll_all(client, manifest, read_tokens(state))
        before = devices[3].wait_for(client, "train")
        for device in devices[:2]:
            assert device.put(client, 1, ONES).status_code == 200
        server.kill()
    with running(tmp_path / "task", state, *options) as server, http(server.url) as client:
        assert devices[0].checkin(client).state == "wait"  # counted
        assert devices[0].put(client, 1, ONES).json()["repeated"]
        assert devices[0].put(client, 1, 2 * ONES).status_code == 409
        after = devices[3].wait_for(client, "train")
        assert after.round_number == before.round_number
        assert after.closes_in_s < before.closes_in_s
        for device in devices[2:]:
            assert device.put(client, 1, ONES).status_code == 200
        assert server.wait_for_event("round")["reports"] == 4
        np.testing.assert_array_equal(latest_weights(state), ONES)
        status = command("status", "--state", str(state), "--json")
        assert json.loads(status.stdout)["released_rounds"] == 1
        # One state, one server.
        second = command("run", str(tmp_path / "task"), "--state", str(state))
        assert second.returncode == 2
        assert "another dpfl-server" in second.stderr
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(30) == 0
        assert server.events("stopped")


def test_told_to_stop_before_the_end_it_does_not_claim_success(tmp_path: Path) -> None:
    make_task(tmp_path / "task", make_plan())
    with running(tmp_path / "task", tmp_path / "state", "--exit-when-done") as server:
        server.wait_for_event("listening")
        assert server.stop() == 1


def test_tokens_can_be_made_before_and_while_the_server_runs(tmp_path: Path) -> None:
    manifest = make_task(tmp_path / "task", make_plan())
    state = tmp_path / "state"

    def make(name: str) -> list[str]:
        out = tmp_path / name
        done = command("tokens", "--state", str(state), "--count", "1", "--out", str(out))
        assert done.returncode == 0, done.stderr
        assert out.stat().st_mode & 0o077 == 0
        return out.read_text().split()

    early = make("early")
    with running(tmp_path / "task", state) as server, http(server.url) as client:
        devices = enroll_all(client, manifest, [*early, *make("late")])
        assert len({device.id for device in devices}) == 2
    again = command(
        "tokens", "--state", str(state), "--count", "1", "--out", str(tmp_path / "early")
    )
    assert again.returncode == 2
    with sqlite3.connect(state / "server.sqlite") as connection:
        dump = "\n".join(connection.iterdump())
    connection.close()
    for token in early:
        assert token not in dump


@pytest.mark.parametrize(
    "damage",
    ["manifest.json", "manifest.sig", "public_key.txt", "client.tflite", "weights.bin"],
)
def test_a_damaged_task_is_refused_in_one_line(tmp_path: Path, damage: str) -> None:
    make_task(tmp_path / "task", make_plan())
    path = tmp_path / "task" / damage
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)
    refused(tmp_path, damage if damage.endswith((".tflite", ".bin")) else "task")
    path.unlink()
    refused(tmp_path, damage)


def test_unusable_states_ports_and_settings_are_refused_in_one_line(tmp_path: Path) -> None:
    make_task(tmp_path / "task", make_plan())
    make_task(tmp_path / "other", make_plan())
    with running(tmp_path / "task", tmp_path / "state") as server:
        port = server.url.rsplit(":", 1)[1]
        (tmp_path / "free").mkdir()
        refused(tmp_path, port, "--port", port, state="free")
        assert server.stop() == 0
    refused(tmp_path, "another --state", task="other")
    refused(tmp_path, "smallest_cohort", "--reports-per-round", "1")
    refused(tmp_path, "population", "--start-when", "99")
    refused(tmp_path, "must be a finite number > 0", "--max-epsilon", "nan")
    refused(tmp_path, "must be a finite number > 0", "--round-deadline", "0")
    refused(tmp_path, "65535", "--port", "70000")
    refused(tmp_path, "npz", "--test-data", str(tmp_path / "absent.npz"))
    (tmp_path / "state" / "server.sqlite").write_bytes(b"garbage" * 1000)
    refused(tmp_path, "not a usable database")
    expired = tmp_path / "expired"
    make_task(expired, make_plan(), valid_until_s=int(time.time()) - 1)
    refused(tmp_path, "ended", task="expired", state="fresh")
    for arguments in (("status", "--state", str(tmp_path / "absent")), ("nothing",), ()):
        done = command(*arguments)
        assert done.returncode == 2
        assert len(done.stderr.splitlines()) == 1


def refused(
    tmp_path: Path, words: str, *options: str, task: str = "task", state: str = "state"
) -> None:
    done = command("run", str(tmp_path / task), "--state", str(tmp_path / state), *options)
    assert done.returncode == 2, done
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert words in done.stderr
    assert done.stdout == ""


def test_every_flag_has_help_and_help_is_light(tmp_path: Path) -> None:
    from server.cli import _parser

    parsers = [_parser()]
    while parsers:
        parser = parsers.pop()
        for action in parser._actions:
            choices = getattr(action, "choices", None)
            if isinstance(choices, dict):
                parsers += choices.values()
            elif action.option_strings or action.dest != "command":
                assert action.help, action
    program = (
        "import sys; from server.cli import main\n"
        "try: main(['run', '--help'])\n"
        "except SystemExit: pass\n"
        "print(*[m for m in ('numpy', 'sqlalchemy', 'uvicorn') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == ""


def test_a_device_enrolled_late_joins_the_open_round_by_the_same_draw(tmp_path: Path) -> None:
    manifest = make_task(tmp_path / "task", make_plan())
    state = tmp_path / "state"
    options = ("--tokens", "4", "--start-when", "2")
    with running(tmp_path / "task", state, *options) as server, http(server.url) as client:
        tokens = read_tokens(state)
        devices = enroll_all(client, manifest, tokens[:2])
        devices[0].wait_for(client, "train")
        late = Device(manifest.task_id)
        late.enroll(client, tokens[2])
        assert late.checkin(client).state == "train"  # q = 1: everyone is drawn
        for device in (*devices, late):
            assert device.put(client, 1, ONES).status_code == 200
        assert server.wait_for_event("round")["reports"] == 3
