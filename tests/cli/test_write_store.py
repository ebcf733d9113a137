"""`dpfl data store`: a store that trains like the plan it was made from."""

from __future__ import annotations

import json

import numpy as np

from tf_dpfl.cli.main import main
from tf_dpfl.data.federated import load_federated_data
from tf_dpfl.protocol.plan_files import load_plan


def test_a_store_holds_the_clients_and_the_test_split_of_the_plan(
    plan_file, tmp_path, capsys, refused
):
    out = tmp_path / "store"
    assert main(["data", "store", str(plan_file), "--out", str(out), "--json"]) == 0
    (event,) = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    data = load_federated_data(load_plan(plan_file))
    assert (event["event"], event["clients"]) == ("store written", data.population)
    overrides = ["data.source=store", f"data.path={out}", "data.partition=natural"]
    stored = load_federated_data(load_plan(plan_file, overrides=overrides))
    for client in (0, data.population - 1):
        for name, array in data.client(client).items():
            np.testing.assert_array_equal(stored.client(client)[name], array)
    np.testing.assert_array_equal(stored.test["x"], data.test["x"])
    assert "exists already" in refused("data", "store", plan_file, "--out", out)
