"""A whole run: its files, its resumption, its ledger, its refusals."""

import json
import shutil

import numpy as np
import pytest
import tensorflow as tf
from kills import simulate_until_killed
from plans import digits_plan, small_mlp, with_server

from tf_dpfl.data.federated import load_federated_data
from tf_dpfl.privacy.accounting import central_epsilon
from tf_dpfl.privacy.mechanism import mechanism_of_plan
from tf_dpfl.protocol.errors import StateError
from tf_dpfl.protocol.plan_files import load_plan
from tf_dpfl.simulation.simulate import simulate

PLAN = with_server(
    digits_plan(noise_multiplier=1.0), rounds=5, optimizer="momentum", learning_rate=0.5
)


@pytest.fixture(scope="module")
def data():
    return load_federated_data(PLAN)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("runs") / "whole"
    return simulate(PLAN, folder, data=data, seed=7)


def metrics(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    for record in records:
        record.pop("seconds")
    return records


def test_run_folder_holds_everything_a_user_takes_away(finished):
    assert load_plan(finished.folder / "plan.toml") == PLAN
    model = tf.keras.models.load_model(finished.folder / "model.keras", compile=False)
    for loaded, kept in zip(model.get_weights(), finished.model.get_weights()):
        np.testing.assert_array_equal(loaded, kept)
    card = json.loads((finished.folder / "privacy.json").read_text())
    assert card == finished.card.to_json()
    report = (finished.folder / "report.html").read_text()
    assert "<svg" in report
    for outside in ('src="', 'href="http', "url(http", "@import"):  # self-contained
        assert outside not in report
    assert (finished.folder / "run.json").stat().st_mode & 0o077 == 0  # the seed is secret


def test_every_line_of_metrics_has_the_epsilon_of_its_round(finished):
    records = metrics(finished.folder)
    assert [r["round"] for r in records] == [1, 2, 3, 4, 5]
    for record in records:
        spent = [mechanism_of_plan(PLAN, rounds=record["round"])]
        expected = central_epsilon(spent, delta=PLAN.privacy.delta)
        assert record["central_epsilon"] == pytest.approx(expected, rel=1e-6)
        assert record["delta"] == PLAN.privacy.delta


def test_evaluation_comes_every_k_rounds_and_at_the_end(finished, data):
    records = metrics(finished.folder)
    assert [r["round"] for r in records if "accuracy" in r] == [2, 4, 5]
    logits = finished.model.predict(data.test["x"], verbose=0)
    accuracy = (logits.argmax(1) == data.test["y"]).mean()
    assert records[-1]["accuracy"] == pytest.approx(accuracy, abs=1e-9)


def test_a_finished_run_trains_nothing_more(finished, data):
    events = []
    again = simulate(PLAN, finished.folder, data=data, on_event=events.append)
    assert [e["event"] for e in events] == ["started", "finished"]
    for new, old in zip(again.model.get_weights(), finished.model.get_weights()):
        np.testing.assert_array_equal(new, old)
    assert len((finished.folder / "ledger.jsonl").read_text().splitlines()) == 5


def test_a_run_that_can_learn_nothing_is_told_so_before_it_begins(data, tmp_path):
    events = []
    loud = PLAN.with_noise_multiplier(500.0)
    result = simulate(
        with_server(loud, rounds=1), tmp_path / "run", data=data, seed=1, on_event=events.append
    )
    first, second, *_ = events
    assert (first["event"], second["event"]) == ("preflight", "traced")
    assert "can not learn" in first["warning"]
    weights = sum(w.size for w in result.model.get_weights())
    cohort = loud.clients.clients_per_round
    assert first["signal_to_noise"] == pytest.approx(cohort / (500 * weights**0.5))


def test_resume_after_kill_gives_the_uninterrupted_result(finished, tmp_path, data):
    """Killed in rounds 1 (no checkpoint yet), 3 (one behind) and 4 (not yet kept)."""
    folder = tmp_path / "run"
    for number in (1, 3, 4):
        simulate_until_killed(PLAN, folder, in_round=number)
    resumed = simulate(PLAN, folder, data=data)
    for new, old in zip(resumed.model.get_weights(), finished.model.get_weights()):
        np.testing.assert_array_equal(new, old)
    assert metrics(folder) == metrics(finished.folder)
    # Each round is charged once, although some were computed twice.
    assert (folder / "ledger.jsonl").read_text() == (finished.folder / "ledger.jsonl").read_text()


def test_ledger_is_charged_before_the_rounds_result_exists(tmp_path, data):
    """When a round fails, its charge is already on disk and its result is not."""
    folder = tmp_path / "run"
    seen = []

    def fail_in_round_two(event):
        if event["event"] == "round":
            seen.append(len((folder / "ledger.jsonl").read_text().splitlines()))
            if event["round"] == 2:
                raise RuntimeError("planned")

    with pytest.raises(RuntimeError, match="planned"):
        simulate(PLAN, folder, data=data, seed=7, on_event=fail_in_round_two)
    assert seen == [1, 2]


def test_runs_without_a_seed_differ(tmp_path, data):
    plan = with_server(digits_plan(noise_multiplier=1.0), rounds=1)
    model = small_mlp()
    first, second = (
        simulate(plan, tmp_path / name, model=model, data=data).model.get_weights()
        for name in ("a", "b")
    )
    assert not np.allclose(first[0], second[0])


def test_the_users_model_is_left_as_it_is(tmp_path, data):
    model = small_mlp()
    before = model.get_weights()
    plan = with_server(digits_plan(noise_multiplier=1.0), rounds=1)
    result = simulate(plan, tmp_path / "run", model=model, data=data)
    for old, now in zip(before, model.get_weights()):
        np.testing.assert_array_equal(now, old)
    assert not np.allclose(result.model.get_weights()[0], before[0])


def test_another_plan_is_refused_and_nothing_is_lost(finished, data):
    before = (finished.folder / "metrics.jsonl").read_bytes()
    with pytest.raises(StateError, match="another plan"):
        simulate(with_server(PLAN, learning_rate=0.25), finished.folder, data=data)
    with pytest.raises(StateError, match="another seed"):
        simulate(PLAN, finished.folder, data=data, seed=8)
    assert (finished.folder / "metrics.jsonl").read_bytes() == before


NEWER_KEYS = (
    "mechanism =",
    "chosen_because =",
    "clipping =",
    "adaptive_clipping =",
    "target_quantile =",
    "clip_learning_rate =",
)


def test_a_run_of_before_there_were_these_keys_goes_on(tmp_path, finished, data):
    folder = tmp_path / "run"
    shutil.copytree(finished.folder, folder)
    lines = (folder / "plan.toml").read_text().splitlines()
    kept = [line for line in lines if not line.startswith(NEWER_KEYS)]
    assert len(kept) == len(lines) - len(NEWER_KEYS)
    (folder / "plan.toml").write_text("\n".join(kept))
    assert simulate(PLAN, folder, data=data).rounds == 5
    with pytest.raises(StateError, match="learning_rate"):
        simulate(with_server(PLAN, learning_rate=0.25), folder, data=data)


def test_a_folder_with_other_files_is_refused(tmp_path, data):
    (tmp_path / "thesis.txt").write_text("important")
    with pytest.raises(StateError, match="no run"):
        simulate(PLAN, tmp_path, data=data)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_newer_run_version_is_refused(tmp_path, data):
    (tmp_path / "run.json").write_text('{"version": 2, "seed": "00", "reproducible": false}')
    with pytest.raises(StateError, match="version 2"):
        simulate(PLAN, tmp_path, data=data)


def test_a_damaged_checkpoint_is_named(tmp_path, data):
    simulate(PLAN, tmp_path / "run", data=data, seed=7)
    newest = sorted((tmp_path / "run" / "checkpoints").iterdir())[-1]
    newest.write_bytes(newest.read_bytes()[:100])
    with pytest.raises(StateError, match=newest.name):
        simulate(PLAN, tmp_path / "run", data=data)
