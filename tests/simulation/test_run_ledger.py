"""The ledger of a run: one charge a round, and a card that counts all of them."""

import json

import pytest
from plans import digits_plan, with_server

from tf_dpfl.privacy.accounting import central_epsilon
from tf_dpfl.privacy.mechanism import mechanism_of_plan
from tf_dpfl.simulation.run_folder import open_run
from tf_dpfl.simulation.run_ledger import RunLedger

PLAN = with_server(digits_plan(noise_multiplier=3.0), rounds=5)


def epsilon(rounds):
    return central_epsilon([mechanism_of_plan(PLAN, rounds=rounds)], delta=PLAN.privacy.delta)


def lines(folder):
    return folder.ledger_file.read_text().splitlines()


def test_a_charge_is_on_disk_when_it_returns_and_a_repeated_one_costs_nothing(tmp_path):
    with open_run(tmp_path / "run", PLAN, seed=None) as folder:
        ledger = RunLedger(folder, PLAN, rounds_done=0)
        for number in (1, 2, 3):
            ledger.charge(number)
            assert len(lines(folder)) == number
            assert ledger.epsilon_after(number) == pytest.approx(epsilon(number), rel=1e-9)
        before = lines(folder)
        # What a resumed run computes again is the same release.
        again = RunLedger(folder, PLAN, rounds_done=3)
        again.charge(2)
        assert again.epsilon_after(2) == pytest.approx(epsilon(2), rel=1e-9)
        assert lines(folder) == before
        assert again.epsilon == ledger.epsilon == pytest.approx(epsilon(3), rel=1e-9)


@pytest.mark.parametrize(("seed", "reproducible"), [(None, False), (7, True)])
def test_the_card_counts_every_charged_round_and_says_whose_seed_it_was(
    tmp_path, seed, reproducible
):
    with open_run(tmp_path / "run", PLAN, seed=seed) as folder:
        ledger = RunLedger(folder, PLAN, rounds_done=0)
        for number in (1, 2, 3):
            ledger.charge(number)
        ledger.write_card()
        card = json.loads(folder.card_file.read_text())
    assert card["rounds_done"] == 3
    assert card["central"]["epsilon"] == pytest.approx(epsilon(3), rel=1e-9)
    assert card["noise_is_reproducible"] is reproducible
    assert any("VOID" in line for line in card["not_covered"]) is reproducible


def test_runs_without_a_seed_have_secrets_of_their_own(tmp_path):
    secrets = []
    for name in ("a", "b"):
        with open_run(tmp_path / name, PLAN, seed=None) as folder:
            secrets.append(folder.seed)
    assert len(set(secrets)) == 2 and all(len(secret) == 32 for secret in secrets)
