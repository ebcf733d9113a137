"""`dpfl data write`: files that read back as the very clients of the plan."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tf_dpfl.cli.main import main
from tf_dpfl.data.federated import load_federated_data
from tf_dpfl.protocol.examples import read_arrays
from tf_dpfl.protocol.plan_files import load_plan


def test_files_hold_exactly_the_clients_asked_for(plan_file, tmp_path, capsys):
    out, test = tmp_path / "clients", tmp_path / "test.npz"
    argv = ["data", "write", str(plan_file), "--out", str(out), "--clients", "8:12", "--json"]
    assert main([*argv, "--test", str(test)]) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [event["event"] for event in events] == ["clients written", "test written"]
    assert events[0]["clients"] == 4
    data = load_federated_data(load_plan(plan_file))
    names = sorted(path.name for path in out.iterdir())
    assert names == [f"client_{index:06d}.npz" for index in range(8, 12)]
    for index, name in zip(range(8, 12), names):
        x, y = read_arrays(out / name).values()
        expected_x, expected_y = data.client(index).values()
        np.testing.assert_array_equal(x, expected_x)
        np.testing.assert_array_equal(y, expected_y)
    x, y = read_arrays(test).values()
    np.testing.assert_array_equal(x, data.test["x"])
    np.testing.assert_array_equal(y, data.test["y"])


def test_written_folder_is_a_data_set_of_its_own(plan_file, tmp_path):
    out = tmp_path / "clients"
    assert main(["data", "write", str(plan_file), "--out", str(out)]) == 0
    original = load_federated_data(load_plan(plan_file))
    overrides = ["data.source=folder", f"data.path={out}", "data.partition=natural"]
    again = load_federated_data(load_plan(plan_file, overrides=overrides))
    assert again.population == original.population == 60
    for index in range(60):
        for mine, theirs in zip(again.client(index).values(), original.client(index).values()):
            np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--clients", "50:61"], "clients.population=60"),
        (["--test", "out/test.npz"], "lies among the clients' files"),
    ],
)
def test_bad_choice_writes_nothing(plan_file, arguments, said, tmp_path, monkeypatch, refused):
    monkeypatch.chdir(tmp_path)
    assert said in refused("data", "write", plan_file, "--out", "out", *arguments)
    assert list(tmp_path.iterdir()) == []


def test_folder_with_other_files_is_refused(plan_file, tmp_path, refused):
    (tmp_path / "client_99.npz").write_bytes(b"")
    assert "not empty" in refused("data", "write", plan_file, "--out", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["client_99.npz"]
