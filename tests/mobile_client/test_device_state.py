"""The state folder and the ledger: one owner, whole files, nothing forgotten."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from device_bench import Bench

from mobile_client.ledger import CHARGED, SENT, DeviceLedger, Report
from mobile_client.session import load_session
from mobile_client.state import StateFolder
from mobile_client.status import device_status
from tf_dpfl.protocol.errors import StateError
from tf_dpfl.protocol.local_privacy import local_epsilon

DIGEST, OTHER = "a" * 64, "b" * 64


def test_charging_a_round_twice_counts_once() -> None:
    once = DeviceLedger().charge(round_number=3, sha256=DIGEST)
    assert once.charge(round_number=3, sha256=DIGEST) == once
    assert once.count == 1


def test_a_round_cannot_be_charged_for_two_updates() -> None:
    ledger = DeviceLedger().charge(round_number=3, sha256=DIGEST)
    with pytest.raises(StateError, match="other bytes"):
        ledger.charge(round_number=3, sha256=OTHER)


def test_closing_keeps_the_charge() -> None:
    ledger = DeviceLedger().charge(round_number=3, sha256=DIGEST)
    closed = ledger.close(round_number=3, outcome=SENT)
    assert closed.count == 1
    assert (closed.outcomes(SENT), closed.outcomes(CHARGED)) == (1, 0)
    with pytest.raises(StateError, match="never charged"):
        ledger.close(round_number=4, outcome=SENT)


def test_a_ledger_survives_its_file(tmp_path: Path) -> None:
    folder = StateFolder(tmp_path)
    for ledger in (DeviceLedger(), DeviceLedger((Report(1, DIGEST), Report(9, OTHER, SENT)))):
        folder.save_ledger(ledger)
        assert folder.load_ledger() == ledger


@pytest.mark.parametrize(
    "reports",
    [
        None,
        {},
        [1],
        [{"round": 0, "sha256": DIGEST, "outcome": "sent"}],
        [{"round": True, "sha256": DIGEST, "outcome": "sent"}],
        [{"round": 1, "sha256": "xyz", "outcome": "sent"}],
        [{"round": 1, "sha256": DIGEST, "outcome": "refunded"}],
        [{"round": 1, "sha256": DIGEST, "outcome": "sent"}] * 2,
    ],
)
def test_a_malformed_ledger_is_an_error_and_never_an_empty_one(
    tmp_path: Path, reports: object
) -> None:
    (tmp_path / "ledger.json").write_text(json.dumps({"version": 1, "reports": reports}))
    with pytest.raises(StateError, match="ledger"):
        StateFolder(tmp_path).load_ledger()


@pytest.mark.parametrize("name", ["ledger.json", "device.json"])
@pytest.mark.parametrize("content", [None, b"", b"{", b'{"version": 2}', b"[]", b"\xff"])
def test_a_missing_or_damaged_file_stops_a_device_that_has_reported(
    bench: Bench, name: str, content: bytes | None
) -> None:
    bench.run(until="report")
    if content is None:
        (bench.state / name).unlink()
    else:
        (bench.state / name).write_bytes(content)
    arrived = len(bench.server.arrived)
    with pytest.raises(StateError, match=name):
        bench.run()
    assert len(bench.server.arrived) == arrived


def test_a_damaged_key_is_an_error_and_never_replaced(bench: Bench) -> None:
    bench.run(until="report")
    (bench.state / "device.key").write_bytes(b"not a key")
    with pytest.raises(StateError, match=r"device\.key"):
        bench.run()
    assert (bench.state / "device.key").read_bytes() == b"not a key"


def test_what_is_private_is_readable_by_the_owner_alone(bench: Bench) -> None:
    bench.run(until="charged")
    files = [path for path in bench.state.rglob("*") if path.is_file()]
    assert len(files) >= 6
    for path in files:
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path


def test_two_processes_cannot_share_a_state_folder(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys; from pathlib import Path; from mobile_client.state import StateFolder\n"
            "with StateFolder(Path(sys.argv[1])).locked(): print('held', flush=True); input()",
            str(tmp_path),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
        text=True,
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(StateError, match="another process"), StateFolder(tmp_path).locked():
            pass
        holder.kill()  # a dead process holds nothing
        holder.wait()
        with StateFolder(tmp_path).locked():
            pass


def test_a_path_that_cannot_be_a_folder_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(StateError, match="not usable as a state folder"),
        StateFolder(tmp_path / "file").locked(),
    ):
        pass


def test_a_round_gets_one_outbox_file_only(tmp_path: Path) -> None:
    folder = StateFolder(tmp_path)
    with folder.locked():
        folder.save_report(1, b"one")
        with pytest.raises(StateError, match="one report only"):
            folder.save_report(1, b"two")
        assert folder.load_report(1) == b"one"


def test_a_fresh_folder_has_nothing_to_say(tmp_path: Path) -> None:
    assert load_session(StateFolder(tmp_path)).binding is None
    with pytest.raises(StateError, match="no device has joined"):
        device_status(tmp_path)


def test_status_tells_what_was_sent_and_what_it_cost(bench: Bench) -> None:
    bench.run(until="report")
    bench.run(until="charged")
    status = device_status(bench.state)
    plan = bench.server.task.manifest.plan
    assert status["reports_charged"] == 2
    assert (status["reports_sent"], status["reports_unsettled"]) == (1, 1)
    assert status["local_epsilon"] == local_epsilon(plan, reports=2)
    assert status["delta"] == plan.privacy.delta
    assert status["task_id"] == bench.server.task.manifest.task_id


def test_status_refuses_a_manifest_that_was_changed(bench: Bench) -> None:
    bench.run(until="report")
    path = bench.state / "manifest.json"
    path.write_bytes(
        path.read_bytes().replace(b'"noise_multiplier":2.0', b'"noise_multiplier":9.0')
    )
    with pytest.raises(StateError, match=r"manifest\.json"):
        device_status(bench.state)
