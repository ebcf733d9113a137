"""Damaged states and settings that cannot be: one line and exit status 2, or mended."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path

import numpy as np
import pytest
from server_helpers import (
    enroll_all,
    http,
    latest_weights,
    make_plan,
    make_task,
    metrics,
    read_tokens,
    running,
)

from server import cli

ONES = np.ones(6, np.float32)


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a task and the state of its one released round."""
    folder = tmp_path_factory.mktemp("ended")
    manifest = make_task(folder / "task", make_plan(server__rounds=1))
    options = ("--tokens", "4", "--start-when", "4", "--exit-when-done", "--linger", "1")
    with running(folder / "task", folder / "state", *options) as server, http(server.url) as client:
        devices = enroll_all(client, manifest, read_tokens(folder / "state"))
        devices[0].wait_for(client, "train")
        for device in devices:
            device.put(client, 1, ONES)
        assert server.process.wait(60) == 0
    return folder


def run(folder: Path, *options: str) -> int:
    state = str(folder / "state")
    ends = ("--exit-when-done", "--linger", "0.1")
    return cli.main(["run", str(folder / "task"), "--state", state, *ends, *options])


def refused(capsys: pytest.CaptureFixture[str], words: str, status: int) -> None:
    printed = capsys.readouterr().err
    assert (status, len(printed.splitlines())) == (2, 1), printed
    assert words in printed


@pytest.fixture
def copy(ended: Path, tmp_path: Path) -> Path:
    shutil.copytree(ended, tmp_path / "copy")
    return tmp_path / "copy"


@pytest.mark.parametrize("host", ["a..b", "nosuch.invalid", "x" * 70 + ".y"])
def test_a_host_that_is_none_is_refused(copy: Path, capsys, host: str) -> None:
    refused(capsys, "--host", run(copy, "--host", host))


def test_a_token_file_that_holds_none_is_refused(copy: Path, capsys) -> None:
    (copy / "state" / "tokens.txt").write_bytes(b"\xff\xfe")
    refused(capsys, "tokens.txt", run(copy, "--tokens", "3"))


def test_a_state_that_is_a_file_is_refused(copy: Path, capsys) -> None:
    shutil.rmtree(copy / "state")
    (copy / "state").write_bytes(b"")
    refused(capsys, "--state", run(copy))
    out = str(copy / "out.txt")
    status = cli.main(["tokens", "--state", str(copy / "state"), "--count", "1", "--out", out])
    refused(capsys, "--state", status)


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE rounds SET result_json = '{'",
        "UPDATE rounds SET result_json = '[]'",
        "UPDATE ledger SET mechanism_json = ''",
        "UPDATE ledger SET mechanism_json = '{}'",
        "UPDATE devices SET public_key = 'zz'",
        "UPDATE rounds SET weights_blob = 'absent'",
    ],
)
def test_rows_that_somebody_changed_are_refused(copy: Path, capsys, change: str) -> None:
    database = sqlite3.connect(copy / "state" / "server.sqlite")
    database.execute(change)
    database.commit()
    database.close()
    (copy / "state" / "privacy.json").unlink()  # so that the ledger is read
    refused(capsys, "", run(copy))


def test_a_damaged_page_is_reported_in_one_line(copy: Path, capsys) -> None:
    path = copy / "state" / "server.sqlite"
    content = bytearray(path.read_bytes())
    content[4096 : 4096 + 12288] = b"\xa5" * 12288
    path.write_bytes(content)
    refused(capsys, "", run(copy))


def test_the_newest_models_files_come_back_when_they_were_removed(copy: Path) -> None:
    state = copy / "state"
    before = (latest_weights(state).tobytes(), metrics(state), (state / "privacy.json").read_text())
    shutil.rmtree(state / "checkpoints")
    for name in ("latest.json", "metrics.jsonl", "privacy.json"):
        (state / name).unlink()
    assert run(copy) == 0
    after = (latest_weights(state).tobytes(), metrics(state), (state / "privacy.json").read_text())
    assert after == before


def test_a_budget_for_no_round_ends_the_task_before_anybody_enrols(tmp_path: Path, capsys) -> None:
    make_task(tmp_path / "task", make_plan(privacy__noise_multiplier=4.0))
    assert run(tmp_path, "--max-epsilon", "0.001") == 0
    assert "epsilon" in capsys.readouterr().out


def test_status_reads_a_state_whose_url_file_is_damaged(copy: Path, capsys) -> None:
    (copy / "state" / "url.txt").write_bytes(b"\xff\xfe")
    assert cli.main(["status", "--state", str(copy / "state")]) == 0
    assert "released rounds: 1" in capsys.readouterr().out


def test_a_database_without_a_column_is_refused_and_left_as_it_is(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    database = copy / "state" / "server.sqlite"
    with sqlite3.connect(database) as connection:
        connection.execute("ALTER TABLE rounds DROP COLUMN reports_per_round")
    connection.close()
    before = database.read_bytes()
    refused(capsys, "rounds lacks reports_per_round", run(copy))
    assert database.read_bytes() == before
