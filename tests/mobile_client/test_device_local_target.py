"""A plan that asks for a local epsilon: devices give it, or take no part."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import mpmath
import numpy as np
import pytest
from device_bench import Bench
from device_server import TestServer
from device_task import SignedTask, plan_of, sign_task

from tf_dpfl.privacy.calibration import calibrate_plan
from tf_dpfl.protocol import local_privacy
from tf_dpfl.protocol.errors import TaskError

ASKED = 0.02  # so little that a report is noise and little else


def local_task(files: Path, model: str = "mlp", **privacy: Any) -> SignedTask:
    """A task as the exporter would make it: the noise solved, the target kept."""
    asked = {"noise_multiplier": None, "target_local_epsilon": ASKED, **privacy}
    plan = calibrate_plan(plan_of(model, **asked))
    return sign_task(files, model, plan=plan, central_epsilon=None)


def refused(bench: Bench, match: str) -> None:
    with pytest.raises(TaskError, match=match):
        bench.run()
    assert bench.server.arrived == [] and bench.server.keys == {}  # not even enrolled


@pytest.mark.parametrize("model", ["mlp", "mlp-example"])
def test_a_report_carries_the_noise_of_the_local_epsilon(
    tmp_path: Path, client_files: Path, model: str
) -> None:
    task = local_task(client_files, model)
    bench = Bench(tmp_path, TestServer(task, rounds=1))
    session = bench.run()
    plan = task.manifest.plan
    assert 0.999 * ASKED <= session.local_epsilon <= ASKED
    report = np.frombuffer(bench.server.arrived[0][2], "<f4").astype(np.float64)
    # Of the unit "example" two epochs are two mechanisms, and six steps, each over the batch
    # and times the rate, are in the report.
    epochs, of_report = (1, 1.0) if model == "mlp" else (2, 0.1 / 8 * math.sqrt(6))
    least = 2 * 0.5 * math.sqrt(epochs) / exact_mu(plan.privacy.delta)
    error = 6 / math.sqrt(2 * len(report))
    assert np.std(report) / of_report == pytest.approx(least, rel=error)


def exact_mu(delta: float) -> float:
    """Sensitivity over deviation at `ASKED`, from the exact delta in 40 digits."""
    with mpmath.workdps(40):

        def excess(mu: Any) -> Any:
            lower = mpmath.exp(ASKED) * mpmath.ncdf(-mu / 2 - ASKED / mu)
            return mpmath.ncdf(mu / 2 - ASKED / mu) - lower - delta

        return float(mpmath.findroot(excess, (1e-3, 0.5), solver="anderson"))


def test_a_share_that_does_not_give_what_is_asked_is_refused(
    tmp_path: Path, client_files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The planted bug: shares a little too small, as if they were those of more devices."""
    task, real = local_task(client_files), local_privacy.noise_stddev_of_share
    for place in ("tf_dpfl.protocol.local_privacy", "mobile_client.reports"):
        monkeypatch.setattr(
            f"{place}.noise_stddev_of_share", lambda **values: 0.99 * real(**values)
        )
    bench = Bench(tmp_path, TestServer(task))
    refused(bench, "asks for a local epsilon of 0.02 for a report, and the noise of a device")


@pytest.mark.parametrize("model", ["mlp", "mlp-example"])
def test_a_signed_plan_whose_noise_is_too_small_for_what_it_asks_is_refused(
    tmp_path: Path, client_files: Path, model: str
) -> None:
    plan = local_task(client_files, model).manifest.plan
    noise = 0.99 * plan.privacy.calibrated_noise_multiplier
    task = sign_task(client_files, model, plan=plan.with_noise_multiplier(noise))
    refused(Bench(tmp_path, TestServer(task)), "too small for privacy.target_local_epsilon=0.02")


def test_a_cohort_that_would_share_the_noise_further_is_refused(
    tmp_path: Path, client_files: Path
) -> None:
    plan = local_task(client_files).manifest.plan
    privacy = replace(plan.privacy, smallest_cohort=3)  # signed with two
    task = sign_task(client_files, plan=replace(plan, privacy=privacy))
    refused(Bench(tmp_path, TestServer(task)), "smallest_cohort=3 shares")
