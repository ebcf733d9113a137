"""The targets of `./run bench device`: what is met, what is missed and what was not measured."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FACTS = {"client_bytes": 650_000, "inference_bytes": 150_000, "weights_bytes": 100_000}
RUNTIME = "ai-edge-litert"


@pytest.fixture(scope="module")
def targets():
    path = ROOT / "benchmarks" / "device_parts" / "targets.py"
    spec = importlib.util.spec_from_file_location("device_targets", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def found(targets, *, workload="cnn-16", facts=FACTS, **peers):
    rounds = {
        f"{RUNTIME} tflite_sgd": [2.0, 20.0, 2.0],
        f"{RUNTIME} tflite_dp": [3.0, 40.0, 3.0],
        f"{RUNTIME} noise": [1.0, 10.0, 1.0],
        "tf_sgd": [1.0, 10.0, 1.0],
        **peers,
    }
    rows = targets.targets(workload, rounds, facts, runtimes=[RUNTIME])
    return {row["target"]: (row["value"], row["met"]) for row in rows}


def test_ratios_are_the_medians_of_each_rounds_own_ratio(targets):
    rows = found(targets, opacus=[6.0, 60.0, 6.0])
    assert rows["DP-SGD / SGD"] == (1.5, "yes")
    assert rows["SGD / full TF's SGD"] == (2.0, "NO")
    assert rows["noise / SGD"] == (0.5, "yes")
    assert rows["Opacus / DP-SGD"] == (2.0, "yes")


def test_a_peer_that_failed_meets_nothing_and_one_not_run_has_no_row(targets):
    rows = found(targets, tf_privacy_optimizer=[])
    assert rows["tf-privacy / DP-SGD"][1] == "-"
    assert "Opacus / DP-SGD" not in rows


def test_a_ratio_without_a_target_is_shown_and_not_judged(targets):
    rows = found(targets, workload="resnet-16")
    assert rows["SGD / full TF's SGD"] == (2.0, "-")


@pytest.mark.parametrize(("client_bytes", "met"), [(650_000, "yes"), (650_001, "NO")])
def test_the_file_may_be_inference_and_three_weights_and_200_kb(targets, client_bytes, met):
    rows = found(targets, facts={**FACTS, "client_bytes": client_bytes})
    assert rows["bytes / bound"][1] == met
