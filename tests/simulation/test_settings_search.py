"""Whole searches: their table, their files, resumption after a kill, what is kept apart."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf
from kills import run_until_killed
from plans import digits_plan, with_server

from tf_dpfl.cli.main import main
from tf_dpfl.data.federated import load_federated_data
from tf_dpfl.privacy.accounting import central_epsilon
from tf_dpfl.privacy.mechanism import mechanism_of_plan
from tf_dpfl.protocol.errors import DataError, PlanError, StateError
from tf_dpfl.protocol.plan_files import load_plan
from tf_dpfl.protocol.tuning_section import UNSTATED
from tf_dpfl.simulation.run_folder import open_run
from tf_dpfl.simulation.tuning import tune
from tf_dpfl.simulation.tuning_folder import open_search
from tf_dpfl.simulation.tuning_plans import search_of

PLAN = with_server(digits_plan(noise_multiplier=1.0), rounds=3)
PLAN = replace(PLAN, clients=replace(PLAN.clients, sampling="poisson"))
OVER = ["learning_rate=0.1,0.3", "clip_norm=0.2..2"]


def search(**options):
    return search_of(PLAN, OVER, **{"data_is": "private", "method": "random", **options})


def table(folder):
    return json.loads((folder / "tune.json").read_text())["ranking"]


@pytest.fixture(scope="module")
def data():
    return load_federated_data(PLAN)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, data):
    """A grid of 2 x 2 on the plan's test split, and its events."""
    events = []
    folder = tmp_path_factory.mktemp("searches") / "whole"
    result = tune(
        PLAN, OVER, folder, data_is="private", points=2, seed=5, data=data, on_event=events.append
    )
    return result, events


def test_the_table_ranks_by_the_accuracy_of_each_run(finished):
    result, _ = finished
    rows = table(result.folder)
    assert [row["rank"] for row in rows] == [1, 2, 3, 4]
    accuracies = [row["accuracy"] for row in rows]
    assert accuracies == sorted(accuracies, reverse=True)
    for row in rows:
        run = result.folder / "tries" / f"{row['try']:04d}"
        last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
        assert last["accuracy"] == row["accuracy"]
        plan = load_plan(run / "plan.toml")
        assert plan.privacy.clip_norm == row["setting"]["privacy.clip_norm"]
        assert plan.local_training.learning_rate == row["setting"]["local_training.learning_rate"]


def test_the_best_plan_is_one_to_simulate(finished):
    result, _ = finished
    assert load_plan(result.folder / "best.toml") == result.best_plan
    assert load_plan(result.best_run / "plan.toml") == result.best_plan
    best = result.ranking[0].setting
    assert result.best_plan.privacy.clip_norm == best["privacy.clip_norm"]


def test_the_best_plan_and_its_run_say_how_they_were_found(finished):
    result, _ = finished
    stated = json.loads((result.folder / "tune.json").read_text())["privacy"]
    tuning = result.best_plan.tuning
    assert (tuning.method, tuning.tries, tuning.data) == ("grid", 4, "private")
    assert tuning.epsilon == stated["epsilon"] and tuning.seeded
    card = json.loads((result.best_run / "privacy.json").read_text())["tuning"]
    assert card["tries"] == 4 and "privacy.clip_norm from 0.2 to 2" in card["over"]
    assert card["cost"]["epsilon"] == stated["epsilon"]
    again = central_epsilon([mechanism_of_plan(PLAN, rounds=5 * 3)], delta=PLAN.privacy.delta)
    assert card["cost"]["epsilon_with_this_training"] == pytest.approx(again, rel=1e-9)
    assert "a grid search of 4 tries" in (result.best_run / "report.html").read_text()
    assert main(["privacy", str(result.folder / "best.toml")]) == 0
    assert main(["privacy", str(result.best_run)]) == 0
    (other,) = {json.loads(f.read_text())["tuning"]["stated_by"]
                for f in result.folder.glob("tries/*/privacy.json")
                if f.parent != result.best_run}  # fmt: skip
    assert other is None  # no choice was made for them


def test_a_grid_on_private_data_states_the_cost_of_all_tries(finished):
    result, events = finished
    expected = central_epsilon([mechanism_of_plan(PLAN, rounds=4 * 3)], delta=PLAN.privacy.delta)
    stated = json.loads((result.folder / "tune.json").read_text())["privacy"]
    assert stated["epsilon"] == result.cost.epsilon == pytest.approx(expected, rel=1e-9)
    assert stated["relation"] == "zero-out"  # noise on devices, as on the card
    text = " ".join(result.cost_in_words)
    assert "taken as public" in text and "GUARANTEE IS VOID" in text  # seeded
    before = next(event for event in events if event["event"] == "search")
    assert before["privacy"]["epsilon"] == stated["epsilon"]
    assert events[0] is before  # said before anything is spent


def test_the_report_holds_everything_itself(finished):
    result, _ = finished
    report = (result.folder / "report.html").read_text()
    assert "<svg" in report and "privacy.clip_norm" in report
    assert f"{result.ranking[0].accuracy:.4f}" in report and "This search costs epsilon" in report
    for outside in ('src="', 'href="http', "url(http", "@import"):
        assert outside not in report


def test_a_finished_search_runs_nothing_again(finished, data):
    result, _ = finished
    events = []
    again = tune(
        PLAN,
        OVER,
        result.folder,
        data_is="private",
        points=2,
        data=data,
        on_event=events.append,
    )
    assert [e["event"] for e in events] == ["search", *["try"] * 4, "finished"]
    assert again.ranking == result.ranking


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"points": 3}, "another over"),
        ({"data_is": "public"}, "data"),
        ({"folds": 2}, "folds"),
        ({"seed": 6}, "another seed than 6"),
    ],
)
def test_another_search_is_not_mixed_in(finished, data, changes, said):
    result, _ = finished
    options = {"data_is": "private", "points": 2, "seed": None, **changes}
    with pytest.raises(StateError, match=said):
        tune(PLAN, OVER, result.folder, data=data, **options)


def test_another_plan_is_not_mixed_in(finished, data):
    result, _ = finished
    with pytest.raises(StateError, match="another plan"):
        tune(
            with_server(PLAN, rounds=4), OVER, result.folder, data_is="private", points=2, data=data
        )


def test_a_run_does_not_go_on_without_what_it_says_of_its_search(finished):
    result, _ = finished
    bare = replace(result.best_plan, tuning=UNSTATED)
    with (
        pytest.raises(StateError, match=r"'\[tuning\]' is gone"),
        open_run(result.best_run, bare, seed=None),
    ):
        pass


def test_the_best_try_is_scored_again_where_its_score_was_lost(finished, data, tmp_path):
    """Its run says by then how it was found, and is the run of that try still."""
    result, _ = finished
    folder = tmp_path / "copy"
    shutil.copytree(result.folder, folder)
    scores = folder / "tries" / "scores.jsonl"
    best = result.ranking[0].number
    kept = [line for line in scores.read_text().splitlines() if json.loads(line)["try"] != best]
    scores.write_text("".join(f"{line}\n" for line in kept))
    again = tune(PLAN, OVER, folder, data_is="private", points=2, data=data)
    assert again.ranking == result.ranking and len(kept) == 3
    assert load_plan(again.best_run / "plan.toml") == result.best_plan


@pytest.mark.slow
def test_a_killed_search_goes_on_to_the_same_table(tmp_path, data):
    options = {"data_is": "private", "folds": 2, "score_noise": 2.0, "seed": 5}
    over, folder = ["learning_rate=0.1,0.3"], tmp_path / "killed"
    whole = tune(PLAN, over, tmp_path / "whole", data=data, **options)
    run_until_killed(
        f"tune(plan, {over}, out, on_event=on_event, **{options})",
        *(PLAN, folder),
        last={"event": "round", "try": 2, "fold": 1, "round": 2},
    )
    events = []
    resumed = tune(PLAN, over, folder, data=data, on_event=events.append, **options)
    assert resumed.ranking == whole.ranking
    assert table(folder) == table(whole.folder)
    ran = {(e["try"], e["fold"], e["round"]) for e in events if e["event"] == "round"}
    assert not any(number == 1 for number, _, _ in ran)  # it had ended
    # Killed before a checkpoint of (2, 1): its rounds come again, the other fold's for the first.
    assert {(2, 1, 3), (2, 2, 1), (2, 2, 3)} <= ran


def weights_of(folder, number, fold):
    file = folder / "tries" / f"{number:04d}" / f"fold-{fold}" / "model.keras"
    return tf.keras.models.load_model(file, compile=False).get_weights()


@pytest.mark.slow
def test_what_held_out_users_hold_changes_no_bit_of_their_folds_model(tmp_path, data):
    """The same search, the held-out users of fold 1 with other examples."""
    over, options = ["learning_rate=0.3"], {"data_is": "private", "folds": 2, "seed": 5}
    one = tune(PLAN, over, tmp_path / "one", data=data, **options)
    found = search_of(PLAN, over, data_is="private", folds=2)
    with open_search(tmp_path / "one", found, seed=None) as folder:
        from tf_dpfl.simulation.tuning_folds import draw_folds

        held_out = draw_folds(40, 2, random=folder.random("folds"))[0]
    features, target = data.inputs["x"].copy(), data.target.copy()
    for user in held_out:
        rows = slice(data.offsets[user], data.offsets[user + 1])
        features[rows] = 16 - features[rows]
        target[rows] = 9 - target[rows]
    other_data = replace(data, inputs={"x": features}, target=target)
    other = tune(PLAN, over, tmp_path / "other", data=other_data, **options)
    for a, b in zip(weights_of(one.folder, 1, 1), weights_of(other.folder, 1, 1)):
        np.testing.assert_array_equal(a, b)
    changed = zip(weights_of(one.folder, 1, 2), weights_of(other.folder, 1, 2))
    assert any((a != b).any() for a, b in changed)  # there they were trained on
    assert one.ranking[0].accuracy != other.ranking[0].accuracy


@pytest.mark.slow
def test_a_score_of_private_users_is_never_written_as_it_is(tmp_path, data):
    """Public and private search with one seed train the same models; only the scores differ."""
    over = ["learning_rate=0.3"]
    public = tune(PLAN, over, tmp_path / "a", data_is="public", folds=2, seed=5, data=data)
    private = tune(
        PLAN, over, tmp_path / "b", data_is="private", folds=2, score_noise=1.0, seed=5, data=data
    )
    for a, b in zip(weights_of(public.folder, 1, 1), weights_of(private.folder, 1, 1)):
        np.testing.assert_array_equal(a, b)
    exact, noised = public.ranking[0].accuracy, private.ranking[0].accuracy
    assert exact != noised and abs(exact - noised) < 6 * 2**0.5 / 40
    assert public.cost is None and "costs no privacy" in public.cost_in_words[0]
    everything = "".join(
        file.read_text() for file in private.folder.rglob("*") if file.suffix in (".json", ".jsonl")
    )
    assert '"accuracy": ' not in everything.replace(f'"accuracy": {noised}', "")


def test_what_was_drawn_stays_drawn(tmp_path):
    """The number of tries too: whoever could draw again would choose it."""
    drawn = []
    for _ in range(3):
        with open_search(tmp_path / "one", search(mean_tries=30.0), seed=None) as folder:
            drawn.append((folder.settings, folder.secret))
    assert drawn[0] == drawn[1] == drawn[2]
    others = set()
    for i in range(8):
        with open_search(tmp_path / f"{i}", search(mean_tries=30.0), seed=None) as folder:
            others.add(len(folder.settings))
    assert len(others) > 1
    assert (tmp_path / "one" / "search.json").stat().st_mode & 0o077 == 0


def test_tries_that_are_not_paid_for_stay_with_their_owner(tmp_path):
    with open_search(tmp_path / "one", search(), seed=None) as folder:
        folder.keep_score(1, 0, 0.5)
    assert (tmp_path / "one" / "tries").stat().st_mode & 0o077 == 0


def test_a_random_search_publishes_its_best_plan_alone(tmp_path, data):
    options = {"data_is": "private", "method": "random", "mean_tries": 1.0, "data": data}
    result = tune(PLAN, OVER, tmp_path / "one", **options)
    (only,) = result.ranking  # a mean of 1 is one try, always
    assert 0.2 <= only.setting["privacy.clip_norm"] <= 2
    assert "if its best try alone is published" in " ".join(result.cost_in_words)
    modes = {file.name: file.stat().st_mode & 0o077 for file in result.folder.iterdir()}
    assert modes["best.toml"] != 0
    assert not any(modes[name] for name in ("tune.json", "report.html", "tries", "search.json"))


def test_a_search_of_another_version_is_refused(tmp_path):
    with open_search(tmp_path / "one", search(), seed=None):
        pass
    file = tmp_path / "one" / "search.json"
    file.write_text(file.read_text().replace('"version": 1', '"version": 2'))
    with (
        pytest.raises(StateError, match="version 2 is not readable"),
        open_search(tmp_path / "one", search(), seed=None),
    ):
        pass


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with (
        pytest.raises(StateError, match="no search"),
        open_search(tmp_path, search(), seed=None),
    ):
        pass


def test_scores_survive_a_torn_line_and_damage_is_named(tmp_path):
    with open_search(tmp_path / "one", search(), seed=None) as folder:
        folder.keep_score(1, 0, 0.5)
        file = tmp_path / "one" / "tries" / "scores.jsonl"
        file.write_text(file.read_text() + '{"try": 2, "fo')
        assert folder.scores() == {(1, 0): 0.5}
        file.write_text('{"try": 2}\n' + file.read_text())
        with pytest.raises(StateError, match="scores.jsonl:1"):
            folder.scores()


def test_a_range_of_what_changes_the_cost_is_refused_for_private_random_search(tmp_path, data):
    with pytest.raises(PlanError, match="noise_multiplier from 0.5 to 2.*list the values"):
        tune(
            PLAN,
            ["noise_multiplier=0.5..2", "clip_norm=0.1..1"],
            tmp_path / "one",
            data_is="private",
            method="random",
            data=data,
        )
    assert not (tmp_path / "one").exists()


def test_without_a_test_split_folds_are_needed(tmp_path, data):
    bare = replace(data, test={name: array[:0] for name, array in data.test.items()})
    with pytest.raises(DataError, match="--folds"):
        tune(PLAN, OVER, tmp_path / "one", data_is="public", data=bare)
    assert not (tmp_path / "one").exists()
