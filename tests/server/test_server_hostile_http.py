"""Hostile bytes on the server's socket: one refusal in JSON each, and nothing in its log."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Iterator
from dataclasses import dataclass
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

from server.http_protocol import LARGEST_HEAD_BYTES
from tf_dpfl.protocol import wire
from tf_dpfl.protocol.tensors import vector_to_bytes

SIZE = 50_000  # a body of 200 kB: larger than a request's head may be
ONES = np.ones(SIZE, np.float32)


@dataclass(frozen=True)
class Target:
    """A server with round 1 released and round 2 open, for three devices."""

    server: ServerProcess
    client: httpx.Client
    devices: list[Device]
    token: str


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    folder = tmp_path_factory.mktemp("hostile")
    plan = make_plan(
        clients__population=3, clients__clients_per_round=3, privacy__smallest_cohort=2
    )
    manifest = make_task(folder / "task", plan, size=SIZE)
    options = ("--tokens", "4", "--start-when", "3", "--body-timeout", "1")
    with running(folder / "task", folder / "state", *options) as server, http(server.url) as client:
        tokens = read_tokens(folder / "state")
        devices = enroll_all(client, manifest, tokens[:3])
        for device in devices:
            device.wait_for(client, "train")
            assert device.put(client, 1, ONES).status_code == 200
        devices[0].wait_for(client, "train")
        yield Target(server, client, devices, tokens[3])
    assert server.errors() == ""


def exchange(target: Target, *parts: bytes, half_close: bool = False) -> tuple[int, str]:
    """Status and `error` of the one answer to raw bytes; the server closes afterwards."""
    url = urlsplit(target.server.url)
    with socket.create_connection((url.hostname, url.port), timeout=20) as peer:
        with contextlib.suppress(ConnectionError):  # refused before everything was sent
            for part in parts:
                peer.sendall(part)
            if half_close:
                peer.shutdown(socket.SHUT_WR)
        received = b""
        with contextlib.suppress(ConnectionError):
            while part := peer.recv(65536):
                received += part
    head, _, body = received.partition(b"\r\n\r\n")
    assert b"application/json" in head
    answer = json.loads(body)
    assert list(answer) == ["error"]
    return int(head.split()[1]), answer["error"]


def head_of(device: Device, method: str, path: str, body: bytes = b"", *, host: str = "h") -> bytes:
    """The signed head of one request whose connection closes after the answer."""
    lines = [f"{method} {path} HTTP/1.1", f"host: {host}", "connection: close"]
    lines += [f"{name}: {value}" for name, value in device.headers(method, path, body).items()]
    return "\r\n".join([*lines, f"content-length: {len(body)}", "", ""]).encode()


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64),  # a TLS hello
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"NONSENSE / HTTP/1.1\r\nhost: h\r\n\r\n",
        b"PUT /v1/rounds/2/update HTTP/1.1\r\nhost: h\r\ncontent-length: -5\r\n\r\n",
        b"PUT /v1/rounds/2/update HTTP/1.1\r\nhost: h\r\ncontent-length: 1"
        + b"0" * 30
        + b"\r\n\r\n",
        b"PUT / HTTP/1.1\r\nhost: h\r\ncontent-length: 4\r\ncontent-length: 5\r\n\r\n12345",
        b"PUT / HTTP/1.1\r\nhost: h\r\ncontent-length: 4\r\ntransfer-encoding: chunked\r\n\r\n1234",
    ],
)
def test_what_is_not_http_is_refused_in_json(target: Target, request_bytes: bytes) -> None:
    status, error = exchange(target, request_bytes)
    assert (status, "HTTP/1.1" in error) == (400, True)


def test_a_head_is_bounded_in_size_and_time(target: Target) -> None:
    start = b"GET / HTTP/1.1\r\nhost: h\r\n"
    endless = b"x: " + b"a" * (LARGEST_HEAD_BYTES // 2)
    for parts in (
        (start, endless, b"a" * LARGEST_HEAD_BYTES),  # never complete
        (start, endless, b"a" * LARGEST_HEAD_BYTES, b"\r\n\r\n"),
        (start, b"x: y\r\n" * LARGEST_HEAD_BYTES, b"\r\n"),
        (b"GET /" + b"a" * 3 * LARGEST_HEAD_BYTES, b" HTTP/1.1\r\nhost: h\r\n\r\n"),
    ):
        assert exchange(target, *parts)[0] in (400, 431)  # http_parser has a bound for URLs
    assert exchange(target, *parts[:0], start, b"x: " + b"a" * 2 * LARGEST_HEAD_BYTES)[0] == 431
    status, error = exchange(target, start)
    assert (status, "1 s" in error) == (408, True)
    assert exchange(target)[0] == 408


def test_a_large_upload_leaves_its_connection_usable(target: Target) -> None:
    device = target.devices[1]
    for _ in range(3):  # replays of round 1, over the client's one kept connection
        answer = device.put(target.client, 1, ONES)
        assert answer.json() == {"accepted": True, "repeated": True}
        assert device.request(target.client, "POST", wire.CHECKIN_PATH).status_code == 200


def test_a_body_cut_off_by_a_half_close_is_refused(target: Target) -> None:
    device, path = target.devices[1], wire.update_path(2)
    body = vector_to_bytes(ONES)
    head = head_of(device, "PUT", path, body)
    assert exchange(target, head, body[:1000], half_close=True)[0] == 400
    assert device.checkin(target.client).state == "train"  # nothing of it was counted


@pytest.mark.parametrize(
    "number", ["9" * 5000, "1" + "0" * 30, str(2**63), "0002", "-1", "1e3", "abc", "2%00", "%32x"]
)
def test_numbers_that_name_no_round_are_not_found(target: Target, number: str) -> None:
    body = vector_to_bytes(ONES)
    path = f"/v1/rounds/{number}/update"
    for method, content in (("PUT", body), ("GET", b"")):
        sent = path if method == "PUT" else path.replace("update", "weights")
        # An unescaped path is what the server routes and what is signed.
        signed = sent.replace("%00", "\0").replace("%32", "2")
        headers = target.devices[1].headers(method, signed, content)
        answer = target.client.request(method, sent, content=content or None, headers=headers)
        assert answer.status_code == 404, answer.text
        assert list(answer.json()) == ["error"]


def test_a_path_is_right_or_refused_and_never_redirected(target: Target) -> None:
    for path in ("/v1/task/", "/v1/checkin/", "//v1/task", "/v1/task/../task", "/v1/status/"):
        answer = target.client.get(target.server.url + path, headers={wire.VERSION_HEADER: "1"})
        assert answer.status_code in (404, 200), answer.text
        assert "location" not in answer.headers


@pytest.mark.parametrize("host", ["h/v1/rounds/1/update?", "h/v1/rounds/1/update#", "[", "a b"])
def test_the_host_header_moves_no_signature_to_another_round(target: Target, host: str) -> None:
    device, body = target.devices[2], vector_to_bytes(ONES)
    signed_for_round_1 = head_of(device, "PUT", wire.update_path(1), body, host=host)
    replayed = signed_for_round_1.replace(b"PUT /v1/rounds/1/", b"PUT /v1/rounds/2/", 1)
    assert exchange(target, replayed, body)[0] in (400, 401)
    assert device.checkin(target.client).state == "train"


def test_half_a_character_in_a_token_is_an_unknown_token(target: Target) -> None:
    key = Device("any").public_key
    for token in (b"\\ud800abcdefgh", b"\xed\xa0\x80abcdefgh", b"\\u0000abcdefgh"):
        body = b'{"token":"' + token + b'","public_key":"' + key.encode() + b'"}'
        answer = target.client.post(
            wire.ENROLL_PATH, content=body, headers={wire.VERSION_HEADER: "1"}
        )
        assert answer.status_code in (400, 403), answer.text
        assert list(answer.json()) == ["error"]
