"""The demo on digits, and its figures computed again from the artefacts."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import dp_accounting
import numpy as np
import psutil
import pytest
import tensorflow as tf
from dp_accounting import pld

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo") / "out"
    command = [sys.executable, str(ROOT / "examples" / "demo" / "run.py"), "--data", "digits"]
    with open(out.parent / "log", "w+") as log:
        status = subprocess.run(
            [*command, "--out", str(out)], stdout=log, stderr=log, timeout=400, cwd=ROOT
        ).returncode
        log.seek(0)
        assert status == 0, log.read()
    return out


@pytest.fixture(scope="module")
def summary(demo):
    return json.loads((demo / "summary.json").read_text())


@pytest.fixture(scope="module")
def test_set(demo):
    with np.load(demo / "test.npz") as arrays:
        return arrays["x"], arrays["y"]


def accuracy(model, test_set):
    x, y = test_set
    return (model.predict(x, verbose=0).argmax(1) == y).mean()


def test_accuracies_are_those_of_the_models(demo, summary, test_set):
    load = tf.keras.models.load_model
    before = load(demo / "run" / "initial_model.keras", compile=False)
    assert summary["accuracy_before"] == pytest.approx(accuracy(before, test_set))
    simulated = load(demo / "run" / "model.keras", compile=False)
    assert summary["accuracy_after_simulation"] == pytest.approx(accuracy(simulated, test_set))
    latest = json.loads((demo / "state" / "latest.json").read_text())
    flat = np.fromfile(demo / "state" / latest["weights"], "<f4")
    start = 0
    for variable in simulated.trainable_variables:
        size = math.prod(variable.shape)
        variable.assign(flat[start : start + size].reshape(variable.shape))
        start += size
    after = accuracy(simulated, test_set)
    assert summary["accuracy_after_device_rounds"] == pytest.approx(after)
    assert summary["accuracy_of_exported_tflite"] == pytest.approx(after, abs=0.003)
    assert after > 0.7  # guessing gives a tenth; the noise is drawn anew each time


def test_epsilons_are_those_of_the_rounds_that_were_run(demo, summary):
    plan = json.loads((demo / "task" / "manifest.json").read_text())["plan"]
    accountant = pld.PLDAccountant(value_discretization_interval=1e-4)
    for noise, share, rounds in (
        (2.0, 120 / 240, summary["simulated_rounds"]),
        (plan["privacy"]["noise_multiplier"], 40 / 60, summary["device_rounds"]),
    ):
        event = dp_accounting.GaussianDpEvent(noise)
        accountant.compose(dp_accounting.PoissonSampledDpEvent(share, event), rounds)
    expected = accountant.get_epsilon(summary["delta"])
    assert summary["central_epsilon"] == pytest.approx(expected, rel=0.01)
    # One report: noise z C / sqrt(m), sensitivity 2 C.
    one = pld.PLDAccountant(dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE)
    share = plan["privacy"]["noise_multiplier"] / math.sqrt(plan["privacy"]["smallest_cohort"])
    one.compose(dp_accounting.GaussianDpEvent(share / 2))
    local = one.get_epsilon(summary["delta"])
    assert summary["local_epsilon_per_report"] == pytest.approx(local, rel=0.01)


def test_reports_and_bytes_are_those_of_the_devices(demo, summary):
    manifest = json.loads((demo / "task" / "manifest.json").read_text())
    reports = sum(summary["reports"])
    assert len(summary["reports"]) == summary["device_rounds"] == 3
    assert all(r >= manifest["plan"]["privacy"]["smallest_cohort"] for r in summary["reports"])
    weights = manifest["files"]["weights.bin"]["size"]
    up = summary["bytes_up_per_device"] * summary["devices"]
    # Updates, and for each device one enrolment of a few hundred bytes.
    assert 0 < up - reports * weights < 1000 * summary["devices"]


def test_device_processes_stay_small(summary):
    assert summary["device_process_peak_mb"] < 80


def test_page_is_self_contained(demo):
    page = (demo / "report.html").read_text()
    assert page.count("<svg") == 2 and "PRIVACY CARD" in page
    for outside in ('src="', 'href="http', "url(http", "@import"):
        assert outside not in page


def test_no_process_is_left(demo):
    for process in psutil.process_iter(["cmdline"]):
        assert str(demo) not in " ".join(process.info["cmdline"] or [])


def test_another_folders_content_is_never_deleted(tmp_path):
    (tmp_path / "thesis.txt").write_text("important")
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "demo" / "run.py"), "--out", str(tmp_path)],
        capture_output=True,
        text=True,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
    )
    assert done.returncode == 2 and "holds other files" in done.stderr
    assert (tmp_path / "thesis.txt").read_text() == "important"
