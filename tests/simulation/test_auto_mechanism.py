"""A plan that leaves the mechanism open: chosen once, simulated, priced again, handed on."""

import json
from dataclasses import replace

import numpy as np
import pytest
from plans import correlated_plan, digits_plan, with_server

from server.budget import Budget
from tf_dpfl.cli.main import main
from tf_dpfl.export.task import export_client
from tf_dpfl.privacy.accounting import central_epsilon
from tf_dpfl.privacy.ledger import ledger_from_lines
from tf_dpfl.privacy.mechanism import BandedRounds, mechanism_from_json, mechanism_of_plan
from tf_dpfl.protocol.plan_files import load_plan, plan_to_toml
from tf_dpfl.simulation.cohort import draw_cohort
from tf_dpfl.simulation.simulate import simulate

TARGET = 20.0


def auto_plan():
    """5 rounds of separation and 10 rounds at a large epsilon: correlation is worth it."""
    plan = digits_plan(
        noise="server", mechanism="auto", noise_multiplier=None, target_epsilon=TARGET
    )
    plan = with_server(plan, rounds=10, optimizer="momentum", momentum=0.5)
    return replace(plan, clients=replace(plan.clients, sampling="poisson"))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return simulate(auto_plan(), tmp_path_factory.mktemp("auto") / "run", seed=3)


def test_the_run_keeps_what_was_chosen_and_why(run):
    kept = load_plan(run.folder / "plan.toml")
    assert kept.privacy.mechanism == "banded" and kept.clients.sampling == "min_separation"
    assert kept.privacy.chosen_because.startswith("least noise")
    assert 0.99 * TARGET <= run.card.central_epsilon <= TARGET
    # The same open plan goes on with the same choice.
    assert simulate(auto_plan(), run.folder).rounds == 10


def test_epsilon_follows_from_the_log_alone_at_every_round(run, capsys):
    plan = load_plan(run.folder / "plan.toml")
    log = (run.folder / "ledger.jsonl").read_text().splitlines()
    noted = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert len(log) == len(noted) == 10
    for number, record in enumerate(noted, start=1):
        ledger = ledger_from_lines(log[:number], delta=plan.privacy.delta)
        assert ledger.epsilon == record["central_epsilon"]
    # By steps: a second participation can begin in round 6.
    epsilons = [record["central_epsilon"] for record in noted]
    assert len(set(epsilons[:5])) == len(set(epsilons[5:])) == 1 and epsilons[5] > epsilons[4]
    assert main(["privacy", str(run.folder), "--json"]) == 0
    card = json.loads(capsys.readouterr().out)
    assert card["central"]["epsilon"] == epsilons[-1]
    assert card["mechanism_chosen_because"] == plan.privacy.chosen_because
    assert "this simulation" in card["central"]["sampling_enforced_by"]


def test_the_cohorts_of_the_run_keep_the_separation_that_is_accounted(run):
    plan = load_plan(run.folder / "plan.toml")
    seed = bytes.fromhex(json.loads((run.folder / "run.json").read_text())["seed"])
    cohorts = [
        set(draw_cohort(plan.clients, run_seed=seed, round_number=n).tolist()) for n in range(1, 11)
    ]
    (spent,) = [mechanism_from_json(entry) for entry in run.card.to_json()["spending"]]
    assert isinstance(spent, BandedRounds) and spent.separation == 5
    for n, cohort in enumerate(cohorts):
        assert not any(cohort & other for other in cohorts[n + 1 : n + spent.separation])
    lines = (run.folder / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["reports"] for line in lines] == [8] * 10


def test_devices_go_on_with_a_release_of_its_own(run, tmp_path):
    manifest = export_client(run.folder, tmp_path / "task", signing_key=tmp_path / "key.pem")
    prior = [mechanism_from_json(entry) for entry in manifest.prior_spending]
    plan = manifest.plan
    assert prior == [mechanism_of_plan(plan, rounds=10)]
    both = [*prior, mechanism_of_plan(plan, rounds=10)]
    assert manifest.central_epsilon == central_epsilon(both, delta=plan.privacy.delta)
    one_longer = central_epsilon([prior[0].with_rounds(20)], delta=plan.privacy.delta)
    assert manifest.central_epsilon == pytest.approx(one_longer, rel=1e-9)  # 10 is 2 separations
    budget, charges = Budget(manifest, max_epsilon=None), []
    for _ in range(10):
        cost = budget.round_cost(
            charges, round_number=len(charges) + 1, lets_one_displace_another=False
        )
        epsilon = budget.epsilon_after(charges, cost)
        charges.append(cost.to_json())
    assert epsilon == manifest.central_epsilon


def test_a_plan_of_every_mechanism_learns(tmp_path):
    """Sanity: with little noise each of them trains."""
    for mechanism in ("banded", "tree"):
        plan = correlated_plan(mechanism, rounds=15, noise_multiplier=0.05)
        result = simulate(plan, tmp_path / mechanism, seed=1)
        assert result.accuracy > 0.4
        assert all(np.isfinite(w).all() for w in result.model.get_weights())
        assert load_plan(tmp_path / mechanism / "plan.toml") == plan
        assert plan_to_toml(plan) == (tmp_path / mechanism / "plan.toml").read_text()
