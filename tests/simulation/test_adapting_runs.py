"""A clip norm's way over many rounds: to the users' norms, through whole runs, to devices."""

import json
import math
import shutil
from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf
from adapting import STILL, adaptive_plan, rounds_of, updates_of
from kills import simulate_until_killed
from plans import digits_plan, small_mlp, with_server

from tf_dpfl.data.federated import load_federated_data
from tf_dpfl.export.task import export_client
from tf_dpfl.protocol.errors import StateError
from tf_dpfl.protocol.manifest import verify_manifest
from tf_dpfl.simulation.simulate import simulate


@pytest.fixture(scope="module")
def data():
    return load_federated_data(digits_plan())


@pytest.mark.parametrize(("factor", "quantile"), [(0.01, 0.5), (100.0, 0.5), (100.0, 0.2)])
def test_the_clip_norm_finds_the_quantile_from_far_off(data, factor, quantile):
    """With the wrong sign it would run away to one of its ends."""
    tf.keras.utils.set_random_seed(3)
    model, users = small_mlp(), np.arange(40)
    plan = adaptive_plan(
        learning_rate=STILL, cohort=40, target_quantile=quantile, clip_learning_rate=0.4
    )
    norms = np.sort([np.linalg.norm(u) for u in updates_of(plan, model, data, users)])
    true = float(np.quantile(norms, quantile))
    plan = replace(plan, privacy=replace(plan.privacy, clip_norm=factor * true))
    clip_norms, weights = rounds_of(plan, model, data, 30, users)
    np.testing.assert_allclose(weights[-1], weights[0], atol=1e-28)
    assert clip_norms[0] == pytest.approx(factor * true)
    towards = np.sign(math.log(1 / factor))
    assert np.sign(math.log(clip_norms[1] / clip_norms[0])) == towards
    assert abs(np.mean(norms <= clip_norms[-1]) - quantile) <= 0.15
    assert abs(math.log(clip_norms[-1] / true)) < 0.1


RUN = with_server(
    digits_plan(
        adaptive_clipping=True,
        noise_multiplier=1.0,
        clip_count_stddev=1.0,
        clip_norm=0.01,
        clip_learning_rate=0.5,
    ),
    rounds=6,
    optimizer="momentum",
)


def metrics(folder):
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in record.items() if k != "seconds"} for record in records]


@pytest.fixture(scope="module")
def whole(tmp_path_factory, data):
    return simulate(RUN, tmp_path_factory.mktemp("adaptive") / "whole", data=data, seed=7)


def test_a_killed_run_goes_on_with_the_clip_norm_it_would_have_had(whole, tmp_path, data):
    """Killed one round behind a checkpoint."""
    folder = tmp_path / "run"
    simulate_until_killed(RUN, folder, in_round=5)
    resumed = simulate(RUN, folder, data=data)
    assert metrics(folder) == metrics(whole.folder)
    for new, old in zip(resumed.model.get_weights(), whole.model.get_weights()):
        np.testing.assert_array_equal(new, old)


def test_a_run_shows_its_clip_norms(whole):
    shown = [record["clip_norm"] for record in metrics(whole.folder)]
    assert shown[0] == pytest.approx(0.01) and len(set(shown)) == 6
    assert shown[-1] > shown[0]  # it began far too small
    assert "Clip norm" in (whole.folder / "report.html").read_text()
    assert "clip norm of each round" in whole.card.to_json()["released"]


@pytest.mark.parametrize(
    ("overrides", "adapts", "clip_norm"),
    [
        ([], True, None),
        (["privacy.adaptive_clipping=false", "privacy.clip_norm=0.75"], False, 0.75),
    ],
)
def test_devices_go_on_with_the_clip_norm_a_run_came_to(
    whole, tmp_path, overrides, adapts, clip_norm
):
    """Unless they are told another one, or to keep it."""
    task = export_client(
        whole.folder, tmp_path / "task", signing_key=tmp_path / "key.pem", overrides=overrides
    )
    privacy = task.plan.privacy
    assert privacy.clip_norm == (clip_norm or metrics(whole.folder)[-1]["clip_norm"])
    assert privacy.adaptive_clipping is adapts and task.prior_spending
    assert verify_manifest(
        (tmp_path / "task" / "manifest.json").read_bytes(),
        (tmp_path / "task" / "manifest.sig").read_text().strip(),
        public_key=(tmp_path / "task" / "public_key.txt").read_text().strip(),
    )


@pytest.mark.parametrize("lines", ["", "{", "[]", '{"round": 1}', '{"clip_norm": true}'])
def test_a_run_that_does_not_say_where_its_clip_norm_came_to_is_not_exported(
    whole, tmp_path, lines
):
    run = shutil.copytree(whole.folder, tmp_path / "run")
    (run / "metrics.jsonl").write_text(lines)
    with pytest.raises(StateError, match=r"metrics\.jsonl: .*clip_norm"):
        export_client(run, tmp_path / "task", signing_key=tmp_path / "key.pem")
