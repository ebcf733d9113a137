"""The network seam: bounded downloads, retries, refusals, what is signed."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from device_bench import Bench

from mobile_client.session import FIRST_BACKOFF_S, LONGEST_BACKOFF_S
from mobile_client.transport import Link, Refused, Unreachable, open_client
from tf_dpfl.protocol.errors import WireError


def reply(status: int, content: bytes, **headers: str) -> httpx.Response:
    """An answer that is streamed, as one from a socket is."""
    length = {"content-length": str(len(content)), **headers}
    return httpx.Response(status, stream=httpx.ByteStream(content), headers=length)


def link_to(handler: Callable[[httpx.Request], httpx.Response]) -> Link:
    client = open_client("http://device.test", transport=httpx.MockTransport(handler))
    return Link(client, Ed25519PrivateKey.generate())


def test_an_endless_answer_is_not_read_beyond_its_bound() -> None:
    sent = []

    def endless() -> Iterator[bytes]:
        while True:
            sent.append(1)
            yield bytes(1000)

    link = link_to(lambda _: httpx.Response(200, content=endless()))
    with pytest.raises(WireError, match="longer than the 5000 bytes"):
        link.fetch_weights(task_id="t", round_number=1, size=5000)
    assert len(sent) <= 7
    assert link.traffic.down <= 7000


def test_an_answer_that_declares_too_much_is_not_read_at_all() -> None:
    link = link_to(lambda _: reply(200, bytes(100)))
    with pytest.raises(WireError, match="100 bytes, at most 99"):
        link.fetch_weights(task_id="t", round_number=1, size=99)
    assert link.traffic.down == 0


def test_an_answer_is_never_decompressed() -> None:
    bomb = gzip.compress(bytes(10_000_000))
    link = link_to(lambda _: reply(200, bomb, **{"content-encoding": "gzip"}))
    with pytest.raises(WireError, match="compressed"):
        link.fetch_client(task_id="t", size=1 << 30)


def test_redirects_are_not_followed() -> None:
    seen = []

    def redirect(request: httpx.Request) -> httpx.Response:
        seen.append(str(request.url))
        return reply(307, b"", location="http://elsewhere.test/")

    with pytest.raises(Refused, match="307"):
        link_to(redirect).fetch_task()
    assert len(seen) == 1


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
def test_later_means_later(status: int) -> None:
    link = link_to(lambda _: reply(status, b'{"error": "busy"}'))
    with pytest.raises(Unreachable, match="busy"):
        link.fetch_task()


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 410, 411, 413, 422])
def test_no_means_no(status: int) -> None:
    link = link_to(lambda _: reply(status, b'{"error": "not you"}'))
    with pytest.raises(Refused, match="not you") as caught:
        link.fetch_task()
    assert caught.value.status == status


@pytest.mark.parametrize(
    "answer",
    [b"", b"[]", b'{"error": null}', b"\xff\x00\x1b[31m", b"[" * 60_000, b"{}"],
    ids=["empty", "list", "null", "control", "deep", "object"],
)
def test_a_refusal_in_any_shape_is_one_printable_line(answer: bytes) -> None:
    link = link_to(lambda _: reply(400, answer))
    with pytest.raises(Refused) as caught:
        link.fetch_task()
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("url", ["", "device.test", "ftp://device.test", "http://", "/v1"])
def test_a_server_that_is_not_a_url_is_refused(url: str) -> None:
    with pytest.raises(WireError, match="server"):
        open_client(url)


def test_every_signed_request_carries_version_device_digest_and_signature(bench: Bench) -> None:
    bench.run()  # the test server refuses any other with 400 or 401
    assert bench.server.count("POST", "/v1/checkin") >= 4
    assert bench.server.count("GET", "/v1/task/client.tflite") == 1


def test_traffic_counts_the_bodies_of_one_device(bench: Bench) -> None:
    bench.run()
    totals = bench.events[-1].detail
    task = bench.server.task
    assert totals["bytes_up"] >= 3 * task.manifest.layout.nbytes
    assert totals["bytes_up"] < 3 * task.manifest.layout.nbytes + 1000
    assert totals["bytes_down"] >= 3 * task.manifest.layout.nbytes + len(task.client)


def failing(times: int, error: Exception | None = None) -> Callable[[Any], Any]:
    left = [times]

    def fault(answer: Any) -> Any:
        if left[0]:
            left[0] -= 1
            if error:
                raise error
            return 503, b'{"error": "stopping"}'
        return answer

    return fault


PATHS = [
    "GET /v1/task",
    "POST /v1/enroll",
    "GET /v1/task/client.tflite",
    "POST /v1/checkin",
    "GET /v1/rounds/1/weights",
    "PUT /v1/rounds/2/update",
]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("error", [None, httpx.ConnectError("refused"), httpx.ReadTimeout("slow")])
def test_a_server_that_is_away_for_a_while_is_waited_for(
    bench: Bench, path: str, error: Exception | None
) -> None:
    bench.server.faults[path] = failing(3, error)
    session = bench.run()
    assert session.ledger.outcomes("sent") == 3
    assert [event.event for event in bench.events].count("retry") == 3


def test_backoff_doubles_with_jitter_up_to_a_minute(bench: Bench) -> None:
    bench.server.faults["GET /v1/task"] = failing(10)
    bench.rim_changes["jitter"] = lambda: 0.5
    bench.run()
    waits = [event.wait_s for event in bench.events if event.event == "retry"]
    assert waits == [min(FIRST_BACKOFF_S * 2**i, LONGEST_BACKOFF_S) for i in range(10)]
    assert waits[-1] == LONGEST_BACKOFF_S


def test_patience_ends(bench: Bench) -> None:
    bench.server.faults["GET /v1/task"] = failing(10**9)
    seconds = iter(range(0, 10_000, 100))
    bench.rim_changes["monotonic_s"] = lambda: next(seconds)
    with pytest.raises(Unreachable, match=r"503.*stopping"):
        bench.run()
    assert 6 <= len(bench.events) <= 8  # 600 s of patience, 100 s a try


def test_patience_starts_anew_after_an_answer(bench: Bench) -> None:
    bench.server.faults["GET /v1/task"] = failing(4)
    bench.server.faults["POST /v1/enroll"] = failing(4)
    seconds = iter(range(0, 100_000, 150))
    bench.rim_changes["monotonic_s"] = lambda: next(seconds)
    assert bench.run().ledger.outcomes("sent") == 3


def test_a_wish_to_wait_is_kept_and_bounded(bench: Bench) -> None:
    bench.run(until="report")
    bench.rim_changes["jitter"] = lambda: 0.0
    waits = {}
    for wish in (0, 5, 1e8):
        answer = json.dumps({"state": "wait", "retry_after_s": wish}).encode()
        bench.server.faults["POST /v1/checkin"] = lambda _, answer=answer: (200, answer)
        bench.run(until="wait")
        waits[wish] = bench.events[-1].wait_s
    assert waits == {0: 0.1, 5: 5.0, 1e8: 600.0}


@pytest.mark.parametrize("status", [403, 404, 410])
def test_weights_that_are_gone_send_the_device_back_to_check_in(bench: Bench, status: int) -> None:
    bench.server.faults["GET /v1/rounds/1/weights"] = lambda _: (status, b"{}")
    bench.run(until="wait")
    bench.server.faults.clear()
    assert bench.run().ledger.outcomes("sent") == 3


@pytest.mark.parametrize("status", [400, 401, 411, 413])
def test_an_upload_refused_for_what_it_is_stops_the_device_and_keeps_it(
    bench: Bench, status: int
) -> None:
    bench.server.faults["PUT /v1/rounds/1/update"] = lambda _: (status, b'{"error": "bad"}')
    with pytest.raises(Refused, match="bad"):
        bench.run()
    assert (bench.state / "outbox" / "round_000001.bin").exists()
