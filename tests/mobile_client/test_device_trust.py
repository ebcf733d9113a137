"""What a device refuses before it trains: wrong tasks, wrong bytes, its own limits."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from device_bench import Bench
from device_server import Answer, TestServer
from device_task import SignedTask, sign_task

from mobile_client.limits import Limits
from tf_dpfl.protocol.errors import BudgetError, DataError, StateError, TaskError, WireError
from tf_dpfl.protocol.local_privacy import local_epsilon
from tf_dpfl.protocol.signing import public_key_hex

WEIGHTS = "GET /v1/rounds/1/weights"
CLIENT = "GET /v1/task/client.tflite"
TASK = "GET /v1/task"


class NeverTrain:
    """In the trainer's place: training at all fails the test."""

    def trainer(self, *_: Any) -> Any:
        raise AssertionError("the device trained")


def refuses(bench: Bench, error: type[Exception], match: str) -> None:
    bench.trainers = NeverTrain()  # type: ignore[assignment]
    with pytest.raises(error, match=match):
        bench.run()
    assert bench.server.arrived == []


def body(change: Callable[[bytes], bytes]) -> Callable[[Answer], Answer]:
    return lambda answer: (answer[0], change(answer[1]))


def tampered(key: str, value: Any) -> Callable[[Answer], Answer]:
    def change(raw: bytes) -> bytes:
        reply = json.loads(raw)
        manifest = json.loads(reply["manifest"])
        manifest["plan"]["privacy"][key] = value
        reply["manifest"] = json.dumps(manifest, sort_keys=True, separators=(",", ":"))
        return json.dumps(reply).encode()

    return body(change)


def test_a_manifest_with_less_noise_than_signed_is_refused(bench: Bench) -> None:
    bench.server.faults[TASK] = tampered("noise_multiplier", 0.001)
    refuses(bench, TaskError, "signature")
    assert bench.server.keys == {}  # not even enrolled


def test_a_task_signed_by_another_author_is_refused(bench: Bench) -> None:
    other = public_key_hex(Ed25519PrivateKey.generate())
    bench.settings = replace(bench.settings, task_key=other)
    refuses(bench, TaskError, "not by the task key")


@pytest.mark.parametrize(("start", "end"), [(-20, -10), (100, 200)])
def test_a_task_out_of_its_time_is_refused(
    tmp_path: Path, client_files: Path, start: int, end: int
) -> None:
    now = int(time.time())
    task = sign_task(client_files, valid_from_s=now + start, valid_until_s=now + end)
    refuses(Bench(tmp_path, TestServer(task)), TaskError, "the task (ended at|is valid from)")


def test_a_task_that_ends_while_the_device_waits_is_not_trained(bench: Bench) -> None:
    bench.run(until="ready")
    bench.rim_changes["now_s"] = iter([time.time(), time.time() + 1e6]).__next__
    refuses(bench, TaskError, "the task ended")


@pytest.mark.parametrize(
    ("path", "change", "match"),
    [
        (CLIENT, lambda raw: raw[:-1] + b"!", "SHA-256"),
        (CLIENT, lambda raw: raw[:-1], "bytes, the manifest says"),
        (CLIENT, lambda raw: raw + b"!", "at most|longer"),
        (WEIGHTS, lambda raw: raw[:-1] + b"!", "SHA-256"),
        (WEIGHTS, lambda raw: raw[:-4], "this task needs"),
        (WEIGHTS, lambda raw: raw + bytes(4), "at most|longer"),
        (WEIGHTS, lambda raw: b"", "this task needs"),
        (TASK, lambda raw: b"[" * 100_000, "not JSON"),
        (TASK, lambda raw: b"{}", "lacks"),
        (TASK, lambda raw: b'{"manifest": "\\ud800", "signature": "00"}', "signature"),
        (TASK, lambda raw: bytes(3 << 20), "at most|longer"),
        ("POST /v1/checkin", lambda raw: b'{"state": "train"}', "round_number"),
        ("POST /v1/checkin", lambda raw: b'{"state": "obey"}', "unknown state"),
        ("POST /v1/enroll", lambda raw: b'{"device_id": "00"}', "this device's key"),
    ],
)
def test_bytes_that_are_not_as_declared_are_refused_before_training(
    bench: Bench, path: str, change: Callable[[bytes], bytes], match: str
) -> None:
    bench.server.faults[path] = body(change)
    refuses(bench, (TaskError, WireError), match)  # type: ignore[arg-type]


def test_weights_that_are_not_finite_are_refused(tmp_path: Path, client_files: Path) -> None:
    task = sign_task(client_files)
    weights = task.weights.copy()
    weights[5] = math.nan
    refuses(Bench(tmp_path, TestServer(replace(task, weights=weights))), WireError, "NaN")


def test_a_kept_client_file_that_was_changed_is_fetched_again(bench: Bench) -> None:
    bench.run(until="ready")
    (bench.state / "client.tflite").write_bytes(b"something else")
    bench.run(until="report")
    assert (bench.state / "client.tflite").read_bytes() == bench.server.task.client


@pytest.mark.parametrize(
    ("limits", "match"),
    [
        ({"max_central_epsilon": 3.99}, "max-central-epsilon"),
        ({"min_noise_multiplier": 2.01}, "min-noise-multiplier"),
        ({"max_local_epsilon": 0.5}, "max-local-epsilon"),
    ],
)
def test_each_own_limit_stops_the_device_before_training(
    bench: Bench, limits: dict[str, float], match: str
) -> None:
    bench.limit(**limits)
    refuses(bench, BudgetError, match)
    assert bench.server.keys == {}  # no place of the population is taken by one who never reports
    bench.limit()
    bench.run(until="ready")
    bench.limit(**limits)
    refuses(bench, BudgetError, match)
    assert bench.server.count("GET", "/v1/rounds/1/weights") == 0


def test_limits_that_are_just_met_let_the_device_take_part(bench: Bench) -> None:
    plan = bench.server.task.manifest.plan
    bench.limit(
        max_central_epsilon=4.0,
        min_noise_multiplier=2.0,
        max_local_epsilon=local_epsilon(plan, reports=3),
    )
    assert bench.run().ledger.outcomes("sent") == 3


def test_a_central_epsilon_that_is_not_claimed_counts_as_infinite(
    tmp_path: Path, client_files: Path
) -> None:
    bench = Bench(tmp_path, TestServer(sign_task(client_files, central_epsilon=None)))
    bench.limit(max_central_epsilon=1e9)
    refuses(bench, BudgetError, "max-central-epsilon")


def test_noise_left_to_the_server_is_refused_unless_allowed(
    tmp_path: Path, client_files: Path
) -> None:
    task = sign_task(client_files, privacy={"noise": "server"})
    bench = Bench(tmp_path, TestServer(task))
    trainers = bench.trainers
    refuses(bench, BudgetError, "allow-trusted-server")
    assert bench.server.keys == {}
    bench.trainers = trainers
    bench.limit(allow_trusted_server=True)
    assert bench.run().local_epsilon == math.inf


def test_the_last_report_the_local_limit_allows_is_the_last_one_sent(bench: Bench) -> None:
    """K reports of noise s compose to one of s / sqrt(k), so 2 cost more than 1."""
    plan = bench.server.task.manifest.plan
    two, three = (local_epsilon(plan, reports=k) for k in (2, 3))
    assert two < three
    bench.limit(max_local_epsilon=(two + three) / 2)
    with pytest.raises(BudgetError, match="report number 3"):
        bench.run()
    assert sorted(bench.server.accepted) == [1, 2]
    with pytest.raises(BudgetError, match="report number 3"):
        bench.run()  # also after a restart: the ledger is durable
    assert sorted(bench.server.accepted) == [1, 2]


@pytest.mark.parametrize("point", ["trained", "charged"])
def test_limits_made_stricter_hold_for_a_report_already_in_the_outbox(
    bench: Bench, point: str
) -> None:
    bench.run(until=point)
    bench.limit(max_local_epsilon=0.5)
    refuses(bench, BudgetError, "max-local-epsilon")


@pytest.mark.parametrize("value", [math.nan, -1.0])
def test_limits_that_are_no_limits_are_refused(value: float) -> None:
    for name in ("max_local_epsilon", "max_central_epsilon", "min_noise_multiplier"):
        with pytest.raises(ValueError, match=name):
            Limits(**{name: value})


def test_a_state_folder_of_another_task_is_refused(bench: Bench, client_files: Path) -> None:
    bench.run(until="report")
    author = Ed25519PrivateKey.generate()
    other = sign_task(client_files, author=author, task_id="6" * 32)
    bench.server.task = other
    bench.settings = replace(bench.settings, task_key=other.task_key)
    before = len(bench.server.arrived)
    with pytest.raises(StateError, match="belongs to task 5555"):
        bench.run()
    assert len(bench.server.arrived) == before


def test_a_task_signed_again_with_other_parameters_is_refused(
    bench: Bench, client_files: Path
) -> None:
    bench.run(until="report")
    again = sign_task(client_files, privacy={"noise_multiplier": 1.0})
    bench.server.task = again
    bench.settings = replace(bench.settings, task_key=again.task_key)
    with pytest.raises(StateError, match="signed again"):
        bench.run()


def test_data_of_another_shape_is_refused_before_the_device_enrols(bench: Bench) -> None:
    np.savez(bench.settings.data, x=np.zeros((3, 9), np.float32), y=np.zeros(3, np.int32))
    refuses(bench, DataError, "shape")
    assert bench.server.keys == {}


def test_a_device_without_a_token_says_so(bench: Bench) -> None:
    bench.settings = replace(bench.settings, token="")
    refuses(bench, WireError, "--token")


def test_a_token_of_another_device_is_refused(bench: Bench, client_files: Path) -> None:
    bench.server.tokens["token-000"] = "0" * 64
    refuses(bench, WireError, "403.*another key")


def test_the_token_is_needed_once_only(bench: Bench) -> None:
    bench.run(until="report")
    bench.settings = replace(bench.settings, token="")
    bench.run()
    assert bench.server.count("POST", "/v1/enroll") == 1


def test_a_server_that_asks_twice_for_one_round_gets_nothing_new(bench: Bench) -> None:
    bench.server.rounds = 1
    bench.run(until="report")
    bench.server.round = 1
    bench.server.accepted.clear()
    bench.trainers = NeverTrain()  # type: ignore[assignment]
    with pytest.raises(AssertionError, match="not finished"):
        bench.run(steps=20)
    assert len(bench.server.arrived) == 1


def test_a_refused_task_leaves_no_binding(bench: Bench, task: SignedTask) -> None:
    bench.limit(min_noise_multiplier=10.0)
    refuses(bench, BudgetError, "min-noise")
    assert not (bench.state / "device.json").exists()
