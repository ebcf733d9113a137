"""A plan that asks for a local epsilon, by its commands: tuned, simulated, on devices."""

import json

import pytest
from whole_path import ROOT, events, run, serve_to_devices

from tf_dpfl.privacy.calibration import calibrate_plan
from tf_dpfl.protocol.plan_files import load_plan

PLAN = ROOT / "examples" / "digits.toml"
DEVICES = 6
ASKED = 20.0


@pytest.mark.slow
def test_what_a_plan_asks_and_how_it_was_tuned_reach_the_last_card(tmp_path):
    key = tmp_path / "author.key"
    sets = ["--set", f"privacy.target_local_epsilon={ASKED}", "--set", "server.rounds=2"]
    run(tmp_path, "tf_dpfl.cli.main", "tune", PLAN, "--over", "clip_norm=0.5,1", "--data",
        "private", "--out", "search", *sets, name="tune")  # fmt: skip
    best = load_plan(tmp_path / "search" / "best.toml")
    assert best.privacy.noise_multiplier is None and best.tuning.tries == 2
    told = run(tmp_path, "tf_dpfl.cli.main", "simulate", "search/best.toml", "--out", "run",
               "--json", name="simulate")  # fmt: skip
    (started,) = (event for event in events(told) if event["event"] == "preflight")
    assert "privacy.target_local_epsilon=" in started["warning"]  # 2 rounds teach nothing
    solved = load_plan(tmp_path / "run" / "plan.toml")
    assert solved == calibrate_plan(best)
    assert solved.privacy.target_local_epsilon == ASKED

    small = ("server.rounds=2", f"clients.population={DEVICES}",
             f"clients.clients_per_round={DEVICES}", "privacy.smallest_cohort=4")  # fmt: skip
    smaller = [
        word for text in (*small, f"privacy.target_local_epsilon={ASKED}")
        for word in ("--set", text)
    ]  # fmt: skip
    run(tmp_path, "tf_dpfl.cli.main", "export", "client", "run", "--signing-key", key, "--out",
        "task", *smaller, name="export")  # fmt: skip
    manifest = json.loads((tmp_path / "task" / "manifest.json").read_text())
    assert manifest["privacy"]["target_local_epsilon"] == ASKED
    assert manifest["privacy"]["noise_multiplier"] < solved.privacy.noise_multiplier
    run(tmp_path, "tf_dpfl.cli.main", "data", "write", "run", "--clients", f"0:{DEVICES}",
        "--out", "clients", name="data")  # fmt: skip
    seen = serve_to_devices(tmp_path, DEVICES)
    assert seen[-1]["reports_sent"] == 2 * DEVICES
    (one,) = {e["local_epsilon_of_one_report"] for e in seen if e["event"] == "task"}
    assert 0.999999 * ASKED <= one <= ASKED

    run(tmp_path, "tf_dpfl.cli.main", "export", "model", "state", "--format", "keras", "--out",
        "model/digits.keras", "--signing-key", key, name="model")  # fmt: skip
    card = json.loads((tmp_path / "model" / "privacy.json").read_text())
    assert card["local"]["epsilon_asked_of_one_report"] == ASKED
    assert card["local"]["noise_decided_by"] == "privacy.target_local_epsilon"
    cost = card["tuning"]["cost"]
    assert card["tuning"]["tries"] == 2 and cost["epsilon"] == best.tuning.epsilon
    # Devices went on after the simulation: another training than the one tuned for.
    in_all = best.tuning.epsilon + card["central"]["epsilon_when_all_rounds_are_done"]
    assert cost["epsilon_with_this_training"] == in_all
