"""A run that cannot begin leaves nothing; a damaged one is refused, never understated."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import tensorflow as tf
from plans import digits_plan, small_mlp

from tf_dpfl.data.federated import load_federated_data
from tf_dpfl.protocol.errors import ModelError, StateError
from tf_dpfl.protocol.plan_files import plan_to_toml
from tf_dpfl.protocol.tuning_section import Tuning
from tf_dpfl.simulation.run_folder import open_run
from tf_dpfl.simulation.simulate import simulate

PLAN = digits_plan(noise_multiplier=1.0)


@pytest.fixture(scope="module")
def data():
    return load_federated_data(PLAN)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, data):
    return simulate(PLAN, tmp_path_factory.mktemp("runs") / "run", data=data, seed=7).folder


@pytest.fixture
def run(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


def refused_model() -> tf.keras.Model:
    layers = tf.keras.layers
    return tf.keras.Sequential(
        [layers.InputLayer((8, 8, 1)), layers.Flatten(), layers.BatchNormalization()]
        + [layers.Dense(10)]
    )


def test_a_refused_model_leaves_nothing_and_its_folder_can_be_used(tmp_path, data):
    out = tmp_path / "run"
    with pytest.raises(ModelError, match="BatchNormalization"):
        simulate(PLAN, out, data=data, model=refused_model())
    assert not out.exists()
    other = digits_plan(noise_multiplier=2.0)  # another plan and model may take the folder
    assert simulate(other, out, data=data, model=small_mlp()).rounds == 3


def test_a_process_killed_while_it_made_the_folder_can_be_repeated(tmp_path):
    (tmp_path / ".lock").touch()
    (tmp_path / "plan.toml").write_text(plan_to_toml(PLAN))
    (tmp_path / ".run.json.00ff.tmp").touch()
    with open_run(tmp_path, PLAN, seed=None) as folder:
        assert len(folder.seed) == 32


@pytest.mark.parametrize("damage", ["missing", "empty", "a line lost"])
def test_a_run_without_its_charges_is_refused_and_its_card_stays(run, data, damage):
    ledger, card = run / "ledger.jsonl", (run / "privacy.json").read_bytes()
    if damage == "missing":
        ledger.unlink()
    else:
        kept = [] if damage == "empty" else ledger.read_text().splitlines(keepends=True)[1:]
        ledger.write_text("".join(kept))
    with pytest.raises(StateError, match="has no charge for round 1 .*understated"):
        simulate(PLAN, run, data=data)
    assert (run / "privacy.json").read_bytes() == card


@pytest.mark.parametrize(
    "name",
    ["plan.toml", "ledger.jsonl", "metrics.jsonl", "initial_model.keras", "model.keras"]
    + ["run.json", "checkpoints/round_000003.npz"],
)
@pytest.mark.parametrize("content", [b"\xff\x00garbage\n", b'{"round": 1', None])
def test_a_damaged_file_is_named_in_one_line(run, data, name, content):
    whole = (run / name).read_bytes()
    (run / name).unlink()
    if content is None:
        (run / name).mkdir()
    elif content.startswith(b"{"):  # a record or archive cut off in the middle
        (run / name).write_bytes(whole[: len(whole) // 3])
    else:
        (run / name).write_bytes(content)
    torn = name == "metrics.jsonl" and content is not None and content.startswith(b"{")
    if torn:  # a torn last line is dropped
        simulate(PLAN, run, data=data)
        return
    with pytest.raises(StateError) as caught:
        simulate(PLAN, run, data=data)
    assert "\n" not in str(caught.value)
    assert name in str(caught.value) or "another plan" in str(caught.value)


@pytest.mark.parametrize("line", ["3", "{}", '{"round": "x"}', "null"])
def test_a_foreign_metrics_line_is_named(run, data, line):
    (run / "metrics.jsonl").write_text(f"{line}\n")
    with pytest.raises(StateError, match="metrics.jsonl:1: not a round's JSON object"):
        simulate(PLAN, run, data=data)


@pytest.mark.parametrize("seed", ["", "00", 5])
def test_a_short_or_foreign_seed_is_refused(run, data, seed):
    header = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**header, "seed": seed}))
    with pytest.raises(StateError, match="run.json: (not readable|a seed of)"):
        simulate(PLAN, run, data=data)


def test_a_folder_that_cannot_be_made_is_a_state_error(tmp_path, data):
    (tmp_path / "file").touch()
    with pytest.raises(StateError, match="cannot be used as a run's folder: Not a directory"):
        simulate(PLAN, tmp_path / "file" / "run", data=data)


def test_another_plan_is_refused_with_the_lines_that_differ(tmp_path):
    plan = digits_plan(noise_multiplier=2.0)
    with open_run(tmp_path / "run", plan, seed=None) as folder:
        folder.initial_model_file.touch()  # else the folder is free for any plan
    said = replace(plan, tuning=Tuning(how="as in the paper", data="public"))
    for other, line in (
        (digits_plan(noise_multiplier=3.0), "'noise_multiplier = 2.0' is now"),
        (said, "is new"),
    ):
        with pytest.raises(StateError, match=line), open_run(tmp_path / "run", other, seed=None):
            pass
