"""The wire's contract against the real server: every answer and every refusal."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest
from server_helpers import (
    Device,
    ServerProcess,
    enroll_all,
    http,
    make_plan,
    make_task,
    read_tokens,
    running,
)

from server.staging import Staging
from tf_dpfl.protocol import wire
from tf_dpfl.protocol.errors import WireError
from tf_dpfl.protocol.files import sha256_hex
from tf_dpfl.protocol.manifest import CLIENT_FILE, Manifest, verify_manifest
from tf_dpfl.protocol.tensors import vector_to_bytes

SIZE = 4000  # larger than one read of a socket
NBYTES = 4 * SIZE
ONES = np.ones(SIZE, np.float32)


@dataclass(frozen=True)
class World:
    """A server with round 1 released, round 2 aborted, round 3 open; q = 1."""

    server: ServerProcess
    client: httpx.Client
    manifest: Manifest
    devices: list[Device]
    tokens: list[str]
    task: Path


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("http")
    plan = make_plan(
        clients__population=3,
        clients__clients_per_round=3,
        privacy__smallest_cohort=2,
        server__rounds=9,
    )
    manifest = make_task(folder / "task", plan, size=SIZE)
    with (
        running(
            folder / "task", folder / "state",
            "--tokens", "5", "--start-when", "3", "--body-timeout", "1",
        ) as server,
        http(server.url) as client,
    ):  # fmt: skip
        tokens = read_tokens(folder / "state")
        devices = enroll_all(client, manifest, tokens[:3])
        for device in devices:
            device.wait_for(client, "train")
            assert device.put(client, 1, ONES).json() == {"accepted": True, "repeated": False}
        devices[0].wait_for(client, "train")
        yield World(server, client, manifest, devices, tokens, folder / "task")


def refused(answer: httpx.Response, status: int, *words: str) -> None:
    """The answer is this refusal: JSON with one sentence that holds the words."""
    assert answer.status_code == status, answer.text
    assert list(answer.json()) == ["error"]
    error = answer.json()["error"]
    assert error
    assert "\n" not in error
    for word in words:
        assert word in error


def test_the_task_is_served_as_signed(world: World) -> None:
    answer = world.client.get(wire.TASK_PATH, headers={wire.VERSION_HEADER: "1"})
    tree = answer.json()
    key = (world.task / "public_key.txt").read_text()
    assert verify_manifest(tree["manifest"].encode(), tree["signature"], public_key=key)
    answer = world.devices[0].request(world.client, "GET", wire.CLIENT_PATH)
    assert answer.content == (world.task / CLIENT_FILE).read_bytes()


def test_another_version_is_refused_everywhere_but_on_public_pages(world: World) -> None:
    device = world.devices[0]
    for method, path in (
        ("GET", wire.TASK_PATH),
        ("GET", wire.CLIENT_PATH),
        ("POST", wire.ENROLL_PATH),
        ("POST", wire.CHECKIN_PATH),
        ("GET", wire.weights_path(2)),
        ("PUT", wire.update_path(2)),
    ):
        refused(device.request(world.client, method, path, x_dpfl_version="2"), 400, "version 1")
    refused(world.client.get(wire.TASK_PATH), 400, wire.VERSION_HEADER)
    assert world.client.get("/").status_code == 200
    assert world.client.get(wire.STATUS_PATH).status_code == 200


def test_enrolment_is_idempotent_and_a_token_admits_one_key(world: World) -> None:
    device, client = world.devices[0], world.client
    again = device.enroll(client, world.tokens[0])
    assert (again.status_code, again.json()) == (200, {"device_id": device.id})
    stranger = Device(world.manifest.task_id)
    refused(stranger.enroll(client, world.tokens[0]), 403, "another key")
    refused(stranger.enroll(client, "unknown-token"), 403, "not known")
    refused(stranger.enroll(client, world.tokens[3]), 403, "places")


def test_malformed_enrolments_are_refused(world: World) -> None:
    def post(content: bytes) -> httpx.Response:
        return world.client.post(
            wire.ENROLL_PATH, content=content, headers={wire.VERSION_HEADER: "1"}
        )

    refused(post(b"{"), 400, "JSON")
    refused(post(b"[]"), 400, "object")
    refused(post(b"[" * 60_000), 400, "JSON")
    refused(post(b'{"token": "12345678"}'), 400, "public_key")
    refused(post(b'{"token": "1", "public_key": "%s"}' % (b"0" * 64)), 400, "token")
    refused(post(b" " * (wire.LARGEST_JSON_BYTES + 1)), 413, "bytes")


def test_unsigned_and_foreign_requests_are_refused(world: World) -> None:
    stranger, device, client = Device(world.manifest.task_id), world.devices[0], world.client
    other_task = Device("another task", device.key)
    for method, path in (
        ("GET", wire.CLIENT_PATH),
        ("POST", wire.CHECKIN_PATH),
        ("GET", wire.weights_path(2)),
        ("PUT", wire.update_path(2)),
    ):
        refused(client.request(method, path, headers={wire.VERSION_HEADER: "1"}), 400)
        refused(stranger.request(client, method, path), 401, "not enrolled")
        refused(other_task.request(client, method, path), 401, "signature")
        refused(device.request(client, method, path, x_dpfl_signature="0" * 128), 401, "signature")
    refused(
        client.post(
            wire.CHECKIN_PATH,
            content=b"x",
            headers=device.headers("POST", wire.CHECKIN_PATH),
        ),
        400,
        wire.DIGEST_HEADER,
    )


def test_weights_are_the_models_and_only_for_the_open_round(world: World) -> None:
    device, client = world.devices[0], world.client
    told = device.checkin(client)
    answer = device.request(client, "GET", wire.weights_path(told.round_number))
    assert len(answer.content) == NBYTES
    assert sha256_hex(answer.content) == told.weights_sha256
    np.testing.assert_array_equal(np.frombuffer(answer.content, "<f4"), ONES)
    refused(device.request(client, "GET", wire.weights_path(1)), 410, "closed")
    refused(device.request(client, "GET", wire.weights_path(99)), 404, "does not exist")


def test_wrong_sizes_are_refused_by_their_declared_length(world: World) -> None:
    device, client = world.devices[0], world.client
    path = wire.update_path(2)
    refused(device.request(client, "PUT", path, bytes(NBYTES - 4)), 400, str(NBYTES))
    refused(device.request(client, "PUT", path, b""), 400, str(NBYTES))
    refused(device.request(client, "PUT", path, bytes(NBYTES + 1)), 413, str(NBYTES))
    for length in ("-1", "x", "1e3", "99999999999999999999"):
        status = raw_put(world, length=length, body=b"")[0]
        assert 400 <= status < 500
    refused(
        client.put(path, content=iter([bytes(NBYTES)]), headers=device.headers("PUT", path)),
        411,
        "Content-Length",
    )


def test_damaged_and_non_finite_bodies_are_refused(world: World) -> None:
    device, client = world.devices[0], world.client
    path = wire.update_path(2)
    refused(
        client.put(path, content=bytes(NBYTES), headers=device.headers("PUT", path, b"other")),
        400,
        wire.DIGEST_HEADER,
    )
    for value in (np.nan, np.inf, -np.inf):
        vector = ONES.copy()
        vector[-1] = value
        refused(device.put(client, 2, vector), 422, "NaN")
    assert device.checkin(client).state == "train"  # nothing was counted


def test_unknown_closed_repeated_and_conflicting_updates(world: World) -> None:
    device, client = world.devices[1], world.client
    refused(device.put(client, 99, ONES), 404, "does not exist")
    refused(device.put(client, 2**70, ONES), 404)
    refused(device.put(client, 0, ONES), 404)
    # Counted in round 1, which is released: the same bytes are known for ever.
    assert device.put(client, 1, ONES).json() == {"accepted": True, "repeated": True}
    refused(device.put(client, 1, 2 * ONES), 409, "another update")
    assert device.put(client, 2, ONES).json() == {"accepted": True, "repeated": False}
    assert device.put(client, 2, ONES).json() == {"accepted": True, "repeated": True}
    refused(device.put(client, 2, 2 * ONES), 409, "another update")
    assert device.checkin(client).state == "wait"


def test_unknown_paths_and_methods_are_refused_in_json(world: World) -> None:
    refused(world.client.get("/v1/nothing"), 404, "docs/wire.md")
    refused(world.client.get("/v1/rounds/-1/weights"), 404)
    refused(world.client.get("/v1/rounds/x/weights"), 404)
    refused(world.client.delete(wire.TASK_PATH), 405, "DELETE")
    refused(world.client.post(wire.update_path(1)), 405)


def test_public_pages_hold_no_device_and_no_count_of_the_cohort(world: World) -> None:
    status = world.client.get(wire.STATUS_PATH)
    assert status.json()["task_id"] == world.manifest.task_id
    assert status.json()["released_rounds"] == 1
    assert status.json()["open_round_number"] == 2
    page = world.client.get("/")
    assert "width=device-width" in page.text
    assert world.manifest.task_id in page.text
    for text in (status.text, page.text):
        assert not any(device.id in text for device in world.devices)
        assert 'reports"' not in text


def test_a_body_that_does_not_arrive_loses_its_place(world: World) -> None:
    status, rest = raw_put(world, length=str(NBYTES), body=bytes(100))
    assert status == 408
    assert b"send it again" in rest


def test_aborted_uploads_count_nothing(world: World) -> None:
    device, client = world.devices[2], world.client
    path = wire.update_path(2)
    for _ in range(20):
        connection = connect(world)
        connection.sendall(head(world, device, path, length=str(NBYTES), body=bytes(NBYTES)))
        connection.sendall(bytes(1000))
        connection.close()
    assert device.checkin(client).state == "train"
    # The last of this module: it closes round 2 together with the update above.
    assert device.put(client, 2, ONES).status_code == 200
    assert device.put(client, 2, ONES).json()["repeated"]


def test_staging_is_bounded_and_every_end_of_an_upload_frees_its_place() -> None:
    # Bodies so large that only two fit: a third waits, and is told to come again.
    staging = Staging(nbytes=200 << 20, timeout_s=0.05)

    async def upload(end: Exception | None) -> None:
        async with staging.place():
            if end is not None:
                raise end

    async def scenario() -> None:
        for end in (None, WireError("late", status=408), WireError("gone"), OSError("x")):
            for _ in range(3):
                with contextlib.suppress(WireError, OSError):
                    await upload(end)
        async with staging.place(), staging.place():
            with pytest.raises(WireError) as refusal:
                await upload(None)
            assert refusal.value.status == 503
        await upload(None)

    asyncio.run(scenario())


def connect(world: World) -> socket.socket:
    address = urlsplit(world.server.url)
    return socket.create_connection((str(address.hostname), int(address.port or 0)), timeout=30)


def head(world: World, device: Device, path: str, *, length: str, body: bytes) -> bytes:
    headers = {**device.headers("PUT", path, body), "host": "x", "content-length": length}
    lines = [f"PUT {path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode()


def raw_put(world: World, *, length: str, body: bytes) -> tuple[int, bytes]:
    """A PUT with this Content-Length and only `body`; the answer's status and rest."""
    device = world.devices[0]
    whole = vector_to_bytes(ONES)
    with connect(world) as connection:
        connection.sendall(
            head(world, device, wire.update_path(2), length=length, body=whole) + body
        )
        answer = b""
        while chunk := connection.recv(65536):
            answer += chunk
            if b'"}' in answer or b"Invalid" in answer:
                break
    return int(answer.split(b" ", 2)[1]), answer
