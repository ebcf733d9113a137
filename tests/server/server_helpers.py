"""Tasks, devices and server processes for the tests of the server."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from server import admission
from tf_dpfl.protocol import signing, wire
from tf_dpfl.protocol.files import sha256_hex
from tf_dpfl.protocol.interface import ExampleInterface, ExampleTensor
from tf_dpfl.protocol.manifest import (
    CLIENT_FILE,
    KERAS_FILE,
    MANIFEST_FILE,
    PUBLIC_KEY_FILE,
    SIGNATURE_FILE,
    WEIGHTS_FILE,
    DpMethod,
    FileDigest,
    Manifest,
    manifest_to_bytes,
    sign_manifest,
)
from tf_dpfl.protocol.plan import Plan, plan_from_dict
from tf_dpfl.protocol.tensors import TensorLayout, vector_to_bytes

ROOT = Path(__file__).resolve().parents[2]
DEADLINE_S = 60.0


def make_plan(**changes: Any) -> Plan:
    """A small plan: everyone of 4 devices every round, no noise; `section__key=value`."""
    tree: dict[str, Any] = {
        "version": 1,
        "task": {"model": "linear"},
        "data": {"source": "digits"},
        "clients": {
            "population": 4,
            "clients_per_round": 4,
            "examples_per_client": 8,
            "sampling": "poisson",
        },
        "local_training": {"epochs": 1, "batch_size": 4, "learning_rate": 0.1},
        "privacy": {
            "clip_norm": 1.0,
            "delta": 1e-5,
            "smallest_cohort": 2,
            "noise_multiplier": 0.0,
        },
        "server": {"rounds": 2},
    }
    for name, value in changes.items():
        section, key = name.split("__")
        tree[section][key] = value
    return plan_from_dict(tree)


def make_task(
    folder: Path,
    plan: Plan,
    *,
    size: int = 6,
    key: Ed25519PrivateKey | None = None,
    client: bytes = b"not a model",
    weights: np.ndarray | None = None,
    **changes: Any,
) -> Manifest:
    """Writes a signed task folder over one weight vector of `size` entries."""
    folder.mkdir(parents=True)
    key = key or Ed25519PrivateKey.generate()
    initial = np.zeros(size, np.float32) if weights is None else weights
    files = {
        CLIENT_FILE: client,
        WEIGHTS_FILE: vector_to_bytes(initial),
        KERAS_FILE: b"keras",
    }
    now = int(time.time())
    manifest = Manifest(
        task_id=signing.random_id(),
        plan=plan,
        layout=TensorLayout(("w",), ((size,),)),
        interface=ExampleInterface(
            (ExampleTensor("x", "float32", (2,)),),
            ExampleTensor("y", "int32", ()),
            output_shape=(2,),
        ),
        files={name: FileDigest.of(data) for name, data in files.items()},
        valid_from_s=now - 60,
        valid_until_s=now + 3600,
        central_epsilon=None,
        dp_method=DpMethod("loop", "a test") if plan.privacy.unit == "example" else None,
    )
    manifest = replace(manifest, **changes)
    raw = manifest_to_bytes(manifest)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    (folder / MANIFEST_FILE).write_bytes(raw)
    (folder / SIGNATURE_FILE).write_text(sign_manifest(key, raw) + "\n")
    (folder / PUBLIC_KEY_FILE).write_text(signing.public_key_hex(key) + "\n")
    return manifest


class Device:
    """One device's side of the wire, with every part open to be got wrong."""

    def __init__(self, task_id: str, key: Ed25519PrivateKey | None = None):
        self.key = key or Ed25519PrivateKey.generate()
        self.task_id = task_id
        self.public_key = signing.public_key_hex(self.key)
        self.id = admission.device_id_of(self.public_key)

    def headers(self, method: str, path: str, body: bytes = b"") -> dict[str, str]:
        """The signed headers of one request."""
        digest = sha256_hex(body)
        message = wire.request_message(
            task_id=self.task_id, method=method, path=path, digest=digest
        )
        return {
            wire.VERSION_HEADER: "1",
            wire.DEVICE_HEADER: self.id,
            wire.DIGEST_HEADER: digest,
            wire.SIGNATURE_HEADER: signing.sign(self.key, message, purpose=signing.REQUEST_PURPOSE),
        }

    def request(
        self, client: httpx.Client, method: str, path: str, body: bytes = b"", **changes: str
    ) -> httpx.Response:
        """A signed request; `changes` replace headers (x_dpfl_version="2")."""
        headers = self.headers(method, path, body)
        headers.update({name.replace("_", "-"): value for name, value in changes.items()})
        content = body if method == "PUT" else None
        return client.request(method, path, content=content, headers=headers)

    def enroll(self, client: httpx.Client, token: str) -> httpx.Response:
        """Enrols with `token`."""
        return client.post(
            wire.ENROLL_PATH,
            json=wire.Enrollment(token, self.public_key).to_json(),
            headers={wire.VERSION_HEADER: "1"},
        )

    def checkin(self, client: httpx.Client) -> wire.Checkin:
        """One check-in that must be answered."""
        answer = self.request(client, "POST", wire.CHECKIN_PATH)
        assert answer.status_code == 200, answer.text
        return wire.Checkin.from_json(answer.json())

    def put(self, client: httpx.Client, number: int, vector: np.ndarray) -> httpx.Response:
        """Puts a vector as the update of a round."""
        return self.request(client, "PUT", wire.update_path(number), vector_to_bytes(vector))

    def wait_for(self, client: httpx.Client, *states: str) -> wire.Checkin:
        """Checks in until the answer has one of `states`."""
        end = time.monotonic() + DEADLINE_S
        while time.monotonic() < end:
            answer = self.checkin(client)
            if answer.state in states:
                return answer
            time.sleep(0.01)
        raise AssertionError(f"no check-in answered {states}")


class ServerProcess:
    """The real command in a process of its own; its events are kept."""

    def __init__(self, task: Path, state: Path, *options: str, program: str | None = None):
        command = [sys.executable, "-m", "server.cli"]
        if program is not None:
            command = [sys.executable, "-c", program]
        self.state = state
        self.log = state.parent / f"{state.name}.events"
        self._errors = open(state.parent / f"{state.name}.errors", "ab")  # noqa: SIM115
        self._output = open(self.log, "ab")  # noqa: SIM115
        self._before = self.log.stat().st_size
        self.process = subprocess.Popen(
            [*command, "run", str(task), "--state", str(state), "--json", *options],
            cwd=ROOT,
            stdout=self._output,
            stderr=self._errors,
        )

    def events(self, name: str | None = None) -> list[dict[str, Any]]:
        """Events of this process so far."""
        text = self.log.read_bytes()[self._before :].decode()
        events = [json.loads(line) for line in text.splitlines(keepends=True) if line[-1:] == "\n"]
        return [event for event in events if name in (None, event["event"])]

    def wait_for_event(self, name: str) -> dict[str, Any]:
        """The first event of that name."""
        end = time.monotonic() + DEADLINE_S
        while time.monotonic() < end:
            found = self.events(name)
            if found:
                return found[0]
            if self.process.poll() is not None and not self.events(name):
                break
            time.sleep(0.02)
        raise AssertionError(f"no event {name!r}: {self.events()} {self.errors()}")

    def errors(self) -> str:
        """What it wrote to stderr."""
        return (self.state.parent / f"{self.state.name}.errors").read_text()

    @property
    def url(self) -> str:
        """Where it listens."""
        return str(self.wait_for_event("listening")["url"])

    def kill(self) -> None:
        """SIGKILL, and waits for the end."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """SIGTERM; returns the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(DEADLINE_S)

    def close(self) -> None:
        """Ends whatever is left."""
        if self.process.poll() is None:
            self.kill()
        self._output.close()
        self._errors.close()


@contextlib.contextmanager
def running(task: Path, state: Path, *options: str) -> Iterator[ServerProcess]:
    """A server process that is gone when the block ends."""
    server = ServerProcess(task, state, *options)
    try:
        yield server
    finally:
        server.close()


@contextlib.contextmanager
def http(url: str) -> Iterator[httpx.Client]:
    """A client that uses no proxy of the surroundings."""
    with httpx.Client(base_url=url, timeout=DEADLINE_S, trust_env=False) as client:
        yield client


def read_tokens(state: Path) -> list[str]:
    """The tokens `run --tokens` made."""
    return (state / "tokens.txt").read_text().split()


def enroll_all(client: httpx.Client, manifest: Manifest, tokens: list[str]) -> list[Device]:
    """One enrolled device for each token."""
    devices = [Device(manifest.task_id) for _ in tokens]
    for device, token in zip(devices, tokens, strict=True):
        answer = device.enroll(client, token)
        assert answer.status_code == 200, answer.text
        assert answer.json() == {"device_id": device.id}
    return devices


def latest_weights(state: Path) -> np.ndarray:
    """The newest released weights, after their digest was checked."""
    latest = json.loads((state / "latest.json").read_text())
    raw = (state / latest["weights"]).read_bytes()
    assert sha256_hex(raw) == latest["sha256"]
    return np.frombuffer(raw, "<f4")


def metrics(state: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl."""
    path = state / "metrics.jsonl"
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines()]


def dyadic(generator: np.random.Generator, size: int) -> np.ndarray:
    """Multiples of 1/256 below 4: float64 sums of them are exact in any order."""
    return (generator.integers(-1024, 1024, size) / 256).astype(np.float32)
