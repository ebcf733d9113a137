"""Norms of updates: what the server's own noise covers is all that is ever added."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from server_helpers import enroll_all, http, make_plan, make_task, metrics, read_tokens, running

from server.norms import bounded_update
from tf_dpfl.protocol.clipping import clip_by_global_norm
from tf_dpfl.protocol.errors import WireError

ON_DEVICE = make_plan(privacy__clip_norm=0.3).privacy
ON_SERVER = replace(ON_DEVICE, noise="server")


def of_norm(norm: float, *, size: int = 1000) -> np.ndarray:
    vector = np.random.default_rng(1).normal(size=size)
    return (vector * (norm / np.linalg.norm(vector))).astype(np.float32)


@pytest.mark.parametrize("norm", [0.0, 1e-30, 0.1, 0.3 * (1 - 1e-5)])
def test_an_update_within_the_bound_is_added_as_it_is(norm: float) -> None:
    update = of_norm(norm)
    assert bounded_update(update, ON_SERVER) is update


@pytest.mark.parametrize("excess", [1e-8, 1e-7, 9e-7])
def test_an_update_longer_by_rounding_is_clipped_to_the_bound(excess: float) -> None:
    added = bounded_update(of_norm(0.3 * (1 + excess)), ON_SERVER)
    assert np.linalg.norm(added.astype(np.float64)) <= 0.3


@pytest.mark.parametrize("norm", [0.3 * (1 + 2e-6), 0.31, 30.0, 1e30])
def test_a_longer_update_is_refused_where_the_server_adds_the_noise(norm: float) -> None:
    with pytest.raises(WireError, match="clip_norm=0.3") as refused:
        bounded_update(of_norm(norm), ON_SERVER)
    assert refused.value.status == 422


def test_what_devices_clip_is_never_refused() -> None:
    for norm in (0.29, 0.3, 0.31, 1e6):
        clipped = clip_by_global_norm(of_norm(norm), clip_norm=0.3)
        assert bounded_update(clipped, ON_SERVER) is clipped


def test_a_report_with_its_own_noise_may_be_long_but_not_absurd() -> None:
    report = of_norm(1e6)
    assert bounded_update(report, ON_DEVICE) is report
    with pytest.raises(WireError, match="norm") as refused:
        bounded_update(np.full(10, 3e38, np.float32), ON_DEVICE)
    assert refused.value.status == 422


def test_the_server_refuses_and_counts_nothing(tmp_path: Path) -> None:
    plan = make_plan(privacy__noise="server", privacy__clip_norm=0.3, server__rounds=1)
    manifest = make_task(tmp_path / "task", plan)
    with (
        running(tmp_path / "task", tmp_path / "state", "--tokens", "4", "--start-when", "4")
        as server,
        http(server.url) as client,
    ):  # fmt: skip
        devices = enroll_all(client, manifest, read_tokens(tmp_path / "state"))
        devices[0].wait_for(client, "train")
        answer = devices[0].put(client, 1, of_norm(0.4, size=6))
        assert (answer.status_code, "norm" in answer.json()["error"]) == (422, True)
        for device in devices:  # refused before, the first device may still report
            assert device.put(client, 1, of_norm(0.2, size=6)).json()["accepted"]
        devices[0].wait_for(client, "done")
    assert metrics(tmp_path / "state")[0]["reports"] == 4
    assert server.errors() == ""
