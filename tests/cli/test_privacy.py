"""`dpfl privacy`: the card before a run, after it, and the noise for a wanted epsilon."""

from __future__ import annotations

import json

import pytest

from tf_dpfl.cli.main import main
from tf_dpfl.privacy.accounting import central_epsilon
from tf_dpfl.privacy.card import privacy_card
from tf_dpfl.privacy.mechanism import GaussianRounds
from tf_dpfl.protocol.plan_files import load_plan, plan_to_toml

SPENT = GaussianRounds(noise_multiplier=1.5, sampling="poisson", sampling_probability=0.5, rounds=3)


@pytest.fixture
def run_folder(plan_file, tmp_path):
    plan = load_plan(plan_file)
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "plan.toml").write_text(plan_to_toml(plan))
    card = privacy_card(plan, rounds_done=4, prior=[SPENT], sampling_enforced_by="the simulation")
    (folder / "privacy.json").write_text(json.dumps(card.to_json()))
    return folder


def printed_json(capsys, argv):
    assert main([*argv, "--json"]) == 0
    return json.loads(capsys.readouterr().out, parse_constant=lambda name: pytest.fail(name))


def test_plan_is_priced_before_anything_is_run(plan_file, capsys):
    card = printed_json(capsys, ["privacy", str(plan_file)])
    assert card["rounds_done"] == 0
    assert card["central"]["epsilon"] == 0
    all_rounds = GaussianRounds(
        noise_multiplier=1.0, sampling="poisson", sampling_probability=0.5, rounds=10
    )
    assert card["central"]["epsilon_when_all_rounds_are_done"] == pytest.approx(
        central_epsilon([all_rounds], delta=1e-3)
    )


def test_text_always_says_against_whom_with_delta_and_unit(plan_file, capsys):
    assert main(["privacy", str(plan_file)]) == 0
    text = capsys.readouterr().out
    for needed in ("whoever sees the released models", "the server", "delta", "unit", "adjacency"):
        assert needed in text


@pytest.mark.parametrize("epsilon", [1.0, 4.0])
def test_wanted_epsilon_is_reached_and_not_exceeded(plan_file, capsys, epsilon):
    card = printed_json(capsys, ["privacy", str(plan_file), "--epsilon", str(epsilon)])
    reached = card["central"]["epsilon_when_all_rounds_are_done"]
    assert 0.99 * epsilon <= reached <= epsilon


@pytest.mark.parametrize("what", ["rounds", "cohort"])
def test_rounds_or_a_cohort_are_solved_for_with_the_plans_noise(plan_file, capsys, what):
    argv = ["privacy", str(plan_file), "--epsilon", "3", "--solve", what, "--delta", "1e-4"]
    assert main([*argv, "--json", "--set", "privacy.smallest_cohort=1"]) == 0
    printed = capsys.readouterr()
    card = json.loads(printed.out)
    assert card["central"]["epsilon_when_all_rounds_are_done"] <= 3
    assert card["central"]["delta"] == 1e-4
    key = {"rounds": "server.rounds", "cohort": "clients.clients_per_round"}[what]
    assert f"the most that epsilon 3 allows: {key}=" in printed.err


def test_of_a_local_and_a_central_target_the_one_that_decides_is_told(plan_file, capsys):
    local = ["privacy", str(plan_file), "--set", "privacy.target_local_epsilon=8"]
    card = printed_json(capsys, local)["local"]
    assert card["epsilon_one_report"] == pytest.approx(8, rel=1e-6)
    for epsilon, decides, other in (
        (4, "target_local_epsilon=8", "target_epsilon=4"),
        (0.3, "target_epsilon=0.3", "target_local_epsilon=8"),
    ):
        assert main([*local, "--epsilon", str(epsilon), "--json"]) == 0
        printed = capsys.readouterr()
        assert f"privacy.{decides} decides the noise" in printed.err
        assert f"keeps to {other} too" in printed.err
        card = json.loads(printed.out)
        assert card["central"]["epsilon_when_all_rounds_are_done"] <= epsilon
        assert card["local"]["epsilon_one_report"] <= 8


def test_solving_needs_an_epsilon(plan_file, refused):
    assert "--solve rounds needs --epsilon" in refused("privacy", plan_file, "--solve", "rounds")


@pytest.mark.parametrize(
    ("overrides", "replaced"),
    [
        (["target_local_epsilon=8"], "noise_multiplier=1"),
        (
            ["target_epsilon=3", "noise_multiplier=2", "target_local_epsilon=8"],
            "noise_multiplier=1",
        ),
        (["target_local_epsilon=8", "target_epsilon=3"], None),
        (["target_epsilon=3", "target_local_epsilon=8"], None),
        (["target_local_epsilon=8", "noise_multiplier=90"], None),
        (["noise_multiplier=2"], None),
        ([], None),
    ],
)
def test_a_local_target_that_takes_the_central_one_away_says_so(
    plan_file, capsys, overrides, replaced
):
    argv = [part for value in overrides for part in ("--set", f"privacy.{value}")]
    assert main(["privacy", str(plan_file), *argv]) == 0
    warnings = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert len(warnings) == (replaced is not None)
    if replaced:
        assert f"replaces the plan's privacy.{replaced}, and with it the central" in warnings[0]
        assert "add --set privacy.target_epsilon=E" in warnings[0]


def test_less_noise_costs_more_and_none_is_infinite(plan_file, capsys):
    epsilons = [
        printed_json(
            capsys, ["privacy", str(plan_file), "--set", f"privacy.noise_multiplier={noise}"]
        )["central"]["epsilon_when_all_rounds_are_done"]
        for noise in (2.0, 1.0)
    ]
    assert epsilons[0] < epsilons[1]
    bare = ["privacy", str(plan_file), "--set", "privacy.noise_multiplier=0"]
    card = printed_json(capsys, bare)
    assert card["central"]["epsilon_when_all_rounds_are_done"] is None
    assert main(bare) == 0
    assert "infinite" in capsys.readouterr().out


def test_server_noise_promises_nothing_against_the_server(plan_file, capsys):
    card = printed_json(capsys, ["privacy", str(plan_file), "--set", "privacy.noise=server"])
    assert card["local"]["epsilon_one_report"] is None
    assert "trusted" in card["local"]["epsilon_text"]


def test_run_folder_tells_what_it_spent_with_what_was_before(run_folder, capsys):
    noted = json.loads((run_folder / "privacy.json").read_text())
    card = printed_json(capsys, ["privacy", str(run_folder)])
    assert card == noted
    assert card["rounds_done"] == 4
    assert card["prior"] == [SPENT.to_json()]
    assert card["central"]["sampling_enforced_by"] == "the simulation"


@pytest.mark.parametrize("argument", [["--epsilon", "1"], ["--set", "server.rounds=1"]])
def test_spent_budget_cannot_be_argued_with(run_folder, argument, refused):
    assert "cannot be changed" in refused("privacy", run_folder, *argument)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"version": 99}', '{"version": 1}'])
def test_broken_card_is_one_line(run_folder, content, refused):
    (run_folder / "privacy.json").write_text(content)
    assert "privacy.json" in refused("privacy", run_folder)


def test_run_without_a_release_says_so(run_folder, refused):
    (run_folder / "privacy.json").unlink()
    assert "nothing was released yet" in refused("privacy", run_folder)
