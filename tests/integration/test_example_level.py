"""The example plan of unit "example" by its commands: simulate, export, devices, cards."""

import json

import pytest
from whole_path import ROOT, events, run, serve_to_devices

from tf_dpfl.privacy.accounting import central_epsilon
from tf_dpfl.privacy.mechanism import ExampleGaussianEpochs

PLAN = ROOT / "examples" / "digits_example_level.toml"
DEVICES = 6


@pytest.mark.slow
def test_the_example_plan_runs_from_simulation_to_devices(tmp_path):
    key = tmp_path / "author.key"
    run(tmp_path, "tf_dpfl.cli.main", "simulate", PLAN, "--out", "run", "--set", "server.rounds=3",
        name="simulate")  # fmt: skip
    small = ("server.rounds=2", f"clients.population={DEVICES}",
             f"clients.clients_per_round={DEVICES}", "privacy.smallest_cohort=4")  # fmt: skip
    sets = [word for text in small for word in ("--set", text)]
    export = ("export", "client", "run", "--signing-key", key)
    told = run(tmp_path, "tf_dpfl.cli.main", *export, "--out", "task", *sets, "--json",
               name="export")  # fmt: skip
    (written,) = events(told)
    assert written["dp_method"] == "one_pass" and "sound rule" in written["dp_method_reason"]
    spoken = run(tmp_path, "tf_dpfl.cli.main", *export, "--out", "again", *sets, name="again")
    assert "dp method one_pass, dp method reason every place" in spoken
    run(tmp_path, "tf_dpfl.cli.main", "data", "write", "run", "--clients", f"0:{DEVICES}",
        "--out", "clients", name="data")  # fmt: skip

    told = serve_to_devices(tmp_path, DEVICES)
    assert told[-1]["reports_sent"] == 2 * DEVICES

    card = json.loads(run(tmp_path, "tf_dpfl.cli.main", "privacy", "state", "--json", name="card"))
    spent = [
        ExampleGaussianEpochs(4.0, "poisson", 0.5, 3, 1),  # simulated
        ExampleGaussianEpochs(4.0, "poisson", 1.0, 2, 1),  # on devices
    ]
    assert card["unit"] == "example" and card["rounds_done"] == 2
    assert card["spending"] == [mechanism.to_json() for mechanism in spent]
    assert card["central"]["epsilon"] == central_epsilon(spent, delta=1e-4)
    assert card["central"]["epsilon"] <= written["central_epsilon"] * (1 + 1e-9)
    status = json.loads(
        run(tmp_path, "mobile_client.cli", "status", "--json", "--state", "devices/device_00000",
            name="status")
    )  # fmt: skip
    assert status["local_epsilon"] == card["local"]["epsilon_all_reports"]
    run(tmp_path, "tf_dpfl.cli.main", "export", "model", "state", "--format", "keras", "--out",
        "model/digits.keras", "--signing-key", key, name="model")  # fmt: skip
    kept = json.loads((tmp_path / "model" / "privacy.json").read_text())
    assert kept["unit"] == "example" and kept["spending"] == card["spending"]
