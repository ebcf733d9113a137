"""Whole comparisons: their variants, their files, what they say, resumption."""

import csv
import json
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
import tensorflow as tf
from kills import run_until_killed
from plans import digits_plan, with_server

from tf_dpfl.cli.main import main
from tf_dpfl.client_work.computation import layout_of
from tf_dpfl.data.federated import load_federated_data
from tf_dpfl.protocol.errors import DataError, StateError
from tf_dpfl.protocol.plan import plan_from_dict, plan_to_dict
from tf_dpfl.protocol.plan_files import load_plan
from tf_dpfl.protocol.tensors import vector_to_bytes
from tf_dpfl.simulation.comparing import compare
from tf_dpfl.simulation.comparing_plans import NAMES

PLAN = with_server(digits_plan(noise_multiplier=1.0), rounds=3)
PLAN = replace(PLAN, clients=replace(PLAN.clients, sampling="poisson"))
# All but one, which the command's own test runs: starting TFF is what takes the time.
TRAINED = [name for name in NAMES if name != "server-gaussian"]
FEDERATED = [name for name in TRAINED if name != "central"]
WITH_PRIVACY = [name for name in FEDERATED if name != "federated"]


@pytest.fixture(scope="module")
def data():
    return load_federated_data(PLAN)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, data):
    """All of `TRAINED`, on three rounds, and the events of it.

    The comparison is stopped when its first variant has ended, and goes on.
    """
    events, folder = [], tmp_path_factory.mktemp("comparisons") / "whole"

    def stop(event):
        events.append(event)
        if event["event"] == "variant":
            raise KeyboardInterrupt

    options = {"data_is": "synthetic", "only": TRAINED, "seed": 5, "data": data}
    with pytest.raises(KeyboardInterrupt):
        compare(PLAN, folder, on_event=stop, **options)
    stopped = len(events)
    result = compare(PLAN, folder, on_event=events.append, **options)
    return result, events, stopped


def metrics_of(folder, name):
    lines = (folder / "variants" / name / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def rows_of(file):
    with open(file, newline="") as lines:
        return list(csv.DictReader(lines))


def as_json(folder):
    return json.loads((folder / "compare.json").read_text())


def weights_of(file):
    return tf.keras.models.load_model(file, compile=False).get_weights()


def test_every_variant_is_trained_in_a_folder_of_its_own(finished):
    result, events, _ = finished
    assert [outcome.name for outcome in result.outcomes] == TRAINED
    assert result.not_compared == {"server-gaussian": "not named by --only"}
    for name in TRAINED:
        assert [m["round"] for m in metrics_of(result.folder, name)] == [1, 2, 3]
        assert (result.folder / "variants" / name / "model.keras").is_file()
    assert events[0]["event"] == "comparison"  # what it costs is said before anything is trained
    assert "costs no privacy" in events[0]["privacy_in_words"][0]


def test_what_had_ended_is_not_trained_again_and_the_rest_goes_on(finished):
    _, events, stopped = finished
    again = [(e["variant"], e["round"]) for e in events[stopped:] if e["event"] == "round"]
    assert again == [(name, number) for name in FEDERATED for number in (1, 2, 3)]
    told = [e["variant"] for e in events[stopped:] if e["event"] == "variant"]
    assert told == TRAINED


def test_all_begin_with_the_same_weights(finished):
    folder = finished[0].folder
    start = weights_of(folder / "initial_model.keras")
    for name in FEDERATED:
        for a, b in zip(weights_of(folder / "variants" / name / "initial_model.keras"), start):
            np.testing.assert_array_equal(a, b)


def test_each_draws_its_cohorts_and_noise_by_itself(finished):
    """Shared coins would be known from one release in the next: epsilons would not compose."""
    runs = [finished[0].folder / "variants" / name / "run.json" for name in FEDERATED]
    seeds = {json.loads(run.read_text())["seed"] for run in runs}
    assert len(seeds) == len(FEDERATED)


def test_each_epsilon_is_what_dpfl_privacy_says_of_its_plan(finished, capsys):
    result, _, _ = finished
    target = as_json(result.folder)["target_epsilon"]
    for outcome in result.outcomes:
        if outcome.name not in WITH_PRIVACY:
            assert outcome.central_epsilon == float("inf") and outcome.card is None
            continue
        plan_file = result.folder / "variants" / outcome.name / "plan.toml"
        assert main(["privacy", str(plan_file), "--json"]) == 0
        card = json.loads(capsys.readouterr().out)
        stated = card["central"]["epsilon_when_all_rounds_are_done"]
        assert outcome.central_epsilon == stated == pytest.approx(target, rel=0.01)
        assert outcome.local_epsilons[1] == (card["local"]["epsilon_all_reports"] or float("inf"))
        assert outcome.metrics[-1]["central_epsilon"] == stated
        assert load_plan(plan_file) == outcome.plan


def test_rows_of_the_long_table_are_the_metrics(finished):
    folder = finished[0].folder
    rows = rows_of(folder / "compare.csv")
    assert [row["variant"] for row in rows] == [name for name in TRAINED for _ in range(3)]
    for row in rows:
        record = metrics_of(folder, row["variant"])[int(row["round"]) - 1]
        for key in ("accuracy", "loss", "seconds", "reports", "examples"):
            assert row[key] == ("" if record.get(key) is None else str(record[key]))
        assert float(row["central_epsilon"]) == (record.get("central_epsilon") or float("inf"))
        assert row["accuracy"] != ""  # a curve needs points


def test_the_table_of_variants_sums_up_the_rounds(finished):
    folder = finished[0].folder
    rows = {row["variant"]: row for row in rows_of(folder / "variants.csv")}
    assert list(rows) == [*TRAINED, "server-gaussian"]
    left_out = rows.pop("server-gaussian")
    assert left_out["not_compared_because"] == "not named by --only"
    assert left_out["final_accuracy"] == left_out["central_epsilon"] == ""
    for name, row in rows.items():
        metrics = metrics_of(folder, name)
        accuracies = [record["accuracy"] for record in metrics]
        assert float(row["final_accuracy"]) == accuracies[-1]
        assert float(row["best_accuracy"]) == max(accuracies)
        assert int(row["best_round"]) == 1 + accuracies.index(max(accuracies))
        assert float(row["seconds"]) == pytest.approx(sum(m["seconds"] for m in metrics))
        assert float(row["seconds_per_round"]) == pytest.approx(float(row["seconds"]) / 3)
    assert rows["server-tree"]["sampling"] == "min_separation"


def test_noise_of_draws_and_of_rounds_are_kept_apart(finished):
    """One column would have the variants' noise compared by numbers of two kinds."""
    result, _, _ = finished
    rows = {row["variant"]: row for row in rows_of(result.folder / "variants.csv")}
    page = Page((result.folder / "compare.html").read_text())
    columns = (
        "noise multiplier of each round's sum",
        "noise multiplier of correlated noise's draws",
    )
    of_rounds, of_draws = (page.tables[0][0].index(name) for name in columns)
    shown = {row[0]: (row[of_rounds], row[of_draws]) for row in page.tables[0][1:]}
    assert "The two columns of noise multipliers are not to be compared" in page.text
    for outcome in result.outcomes:
        row = rows[outcome.name]
        written = row["noise_multiplier"], row["noise_multiplier_of_correlated_draws"]
        noise = outcome.plan.privacy.noise_multiplier
        if outcome.name in ("server-tree", "server-banded"):
            assert noise > 0 and written == ("", str(noise))
            assert shown[outcome.name] == ("", f"{noise:.4g}")
        else:
            assert noise == (1.0 if outcome.name == "device-gaussian" else 0.0)
            assert written == (str(noise), "") and shown[outcome.name] == (f"{noise:g}", "")


def test_bytes_are_those_of_the_protocols_vectors(finished, data):
    folder = finished[0].folder
    model = tf.keras.models.load_model(folder / "initial_model.keras", compile=False)
    vector = len(vector_to_bytes(np.zeros(layout_of(model).size, np.float32)))
    for row in rows_of(folder / "variants.csv")[: len(TRAINED)]:
        sent = [int(row[f"bytes_{way}_per_user_and_round"]) for way in ("down", "up")]
        once = float(row["bytes_up_once_per_user"])
        if row["variant"] == "central":
            assert sent == [0, 0]
            assert once == (data.inputs["x"].nbytes + data.target.nbytes) / 40
        else:
            assert sent == [vector, vector] and once == 0


def test_central_training_uses_all_records_of_all_users(finished):
    folder = finished[0].folder
    central = as_json(folder)["central_training"]
    assert central["records"] == 400 and central["passes"] == pytest.approx(3 * 0.2 * 2)
    examples = sum(record["examples"] for record in metrics_of(folder, "central"))
    assert examples == round(1.2 * 400)


def test_json_has_a_version_and_the_numbers_of_the_tables(finished):
    folder = finished[0].folder
    found = as_json(folder)
    assert found["version"] == 1 and found["test_examples"] == 355
    rows = {row["variant"]: row for row in rows_of(folder / "variants.csv")}
    for variant in found["variants"]:
        row = rows[variant["variant"]]
        assert variant["final_accuracy"] == float(row["final_accuracy"])
        infinite = variant["central_epsilon"] is None
        assert infinite == (row["central_epsilon"] == "inf") == (variant["privacy_card"] is None)


class Page(HTMLParser):
    """What a page holds; a tag that is not closed where it should be is a fault."""

    VOID = {"meta", "br"}

    def __init__(self, text):
        super().__init__()
        self.open, self.attributes, self.tags, self.text = [], [], [], ""
        self.tables = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data
        if {"td", "th"} & set(self.open[-1:]):
            self.tables[-1][-1][-1] += data


def test_the_report_needs_nothing_but_itself(finished):
    text = (finished[0].folder / "compare.html").read_text()
    page = Page(text)
    assert "http" not in text and "url(" not in text.replace("url(#", "") and "@import" not in text
    assert not {"script", "link", "img", "iframe", "object"} & set(page.tags)
    links = [value for name, value in page.attributes if name in ("src", "href", "xlink:href")]
    assert all(value.startswith("#") for value in links)
    assert ("name", "viewport") in page.attributes
    assert "prefers-color-scheme: dark" in text


def test_the_report_says_what_is_private_against_whom(finished):
    result, _, _ = finished
    page = Page((result.folder / "compare.html").read_text())
    assert page.tags.count("svg") == 3 and page.tags.count("details") == len(WITH_PRIVACY)
    for outcome in result.outcomes:
        assert f"{outcome.accuracy:.4f}" in page.text and outcome.name in page.text
    assert page.text.count("no guarantee against anybody") == 2
    assert "against whoever sees the released models" in page.text
    assert "none: the server is trusted" in page.text
    assert "server-gaussian: not named by --only" in page.text
    assert "400 records of the users, 1.2 passes over them" in page.text
    assert "costs no privacy" in page.text and "guarantees nothing to anybody" in page.text
    tables = [i for i, tag in enumerate(page.tags) if tag == "table"]
    assert [page.tags[i - 1] for i in tables] == ["div"]
    assert ("style", "overflow-x: auto") in page.attributes  # wide tables move by themselves


def test_a_comparison_that_is_whole_trains_nothing(finished, data):
    result, _, _ = finished
    events = []
    again = compare(
        PLAN,
        result.folder,
        data_is="synthetic",
        data=data,
        on_event=events.append,
        only=["central"],
    )
    assert [e["event"] for e in events] == ["comparison", "variant", "finished"]
    assert set(events[0]["not_compared"]) == {"server-gaussian"}
    # Others keep their place.
    assert [(o.name, o.metrics) for o in again.outcomes] == [
        (o.name, o.metrics) for o in result.outcomes
    ]
    assert set(again.not_compared) == {"server-gaussian"}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"data_is": "private"}, "another data"),
        ({"plan": with_server(PLAN, rounds=4)}, "another plan"),
        ({"seed": 6}, "another seed than 6"),
    ],
)
def test_another_comparison_is_not_mixed_in(finished, data, changes, said):
    options = {"plan": PLAN, "data_is": "synthetic", "data": data, **changes}
    with pytest.raises(StateError, match=said):
        compare(options.pop("plan"), finished[0].folder, **options)


def test_a_model_that_diverges_is_compared_too(tmp_path, data):
    """Without clipping, and with a rate that some other variant can bear, one may."""
    local = replace(PLAN.local_training, learning_rate=1e11)
    plan = replace(PLAN, local_training=local)
    result = compare(plan, tmp_path / "one", data_is="public", only=["central"], data=data)
    assert not np.isfinite(metrics_of(result.folder, "central")[-1]["loss"])
    assert as_json(result.folder)["variants"][0]["metrics"][-1]["loss"] is None
    assert rows_of(result.folder / "compare.csv")[-1]["loss"] in ("nan", "inf")


def test_without_a_test_split_nothing_can_be_compared(tmp_path, data):
    bare = replace(data, test={name: array[:0] for name, array in data.test.items()})
    with pytest.raises(DataError, match="test split"):
        compare(PLAN, tmp_path / "one", data_is="public", data=bare)
    assert not (tmp_path / "one").exists()


@pytest.mark.slow
def test_a_killed_comparison_goes_on_to_the_same_figures(tmp_path, data):
    plan, folder = with_server(PLAN, rounds=4), tmp_path / "killed"
    only = ["central", "server-tree", "server-banded"]
    options = {"data_is": "public", "seed": 5, "only": only}
    whole = compare(plan, tmp_path / "whole", data=data, **options)
    run_until_killed(
        f"compare(plan, out, on_event=on_event, **{options})",
        *(plan, folder),
        last={"event": "round", "variant": "server-tree", "round": 3},
    )
    events = []
    resumed = compare(plan, folder, data=data, on_event=events.append, **options)
    ran = [(e["variant"], e["round"]) for e in events if e["event"] == "round"]
    assert ran[0] == ("server-tree", 3)  # from the checkpoint after round 2
    assert not any(name == "central" for name, _ in ran)
    for a, b in zip(resumed.outcomes, whole.outcomes):
        figures = ("round", "accuracy", "loss", "central_epsilon")
        assert [[m.get(f) for f in figures] for m in a.metrics] == [
            [m.get(f) for f in figures] for m in b.metrics
        ]


@pytest.mark.slow
def test_example_level_plans_compare_what_protects_examples(tmp_path, data):
    tree = plan_to_dict(PLAN)
    tree["privacy"].update(unit="example", delta=1e-4)
    result = compare(plan_from_dict(tree), tmp_path / "one", data_is="public", data=data)
    assert [o.name for o in result.outcomes] == ["central", "federated", "device-gaussian"]
    assert set(result.not_compared) == {"server-gaussian", "server-tree", "server-banded"}
    page = (result.folder / "compare.html").read_text()
    assert "Not compared" in page and "server-banded: privacy.noise=" in page
    assert "example (one example of one client" in page
    rows = {row["variant"]: row for row in rows_of(result.folder / "variants.csv")}
    assert rows["device-gaussian"]["unit"] == "example"
    assert 'unit="example"' in rows["server-tree"]["not_compared_because"]
    assert "noise multiplier of each local step" in page and "two columns of noise" not in page


@pytest.mark.slow
def test_private_data_state_the_price_of_all_variants(tmp_path, data):
    only = ["device-gaussian", "server-gaussian"]
    result = compare(PLAN, tmp_path / "one", data_is="private", only=only, data=data)
    found = as_json(result.folder)["privacy"]
    assert found["epsilon"] > 1.2 * as_json(result.folder)["target_epsilon"]
    page = (result.folder / "compare.html").read_text()
    assert f"the 2 with privacy cost epsilon {found['epsilon']:.4g}" in page
    assert as_json(result.folder)["central_training"] is None
    later = compare(PLAN, result.folder, data_is="private", only=["central"], data=data)
    assert as_json(result.folder)["privacy"]["epsilon"] is None
    assert {o.name for o in later.outcomes} == {"central", *only}
    assert "no finite epsilon" in (result.folder / "compare.html").read_text()
