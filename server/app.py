"""The HTTP application: the wire's requests onto the coordinator's answers."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.applications import Starlette
from starlette.convertors import IntegerConvertor, register_url_convertor
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from server import dashboard
from server.adapting import bounded_report
from server.admission import EMPTY_DIGEST, authenticate
from server.aggregation import Upload
from server.coordinator import Coordinator
from server.staging import Staging, read_small_body
from tf_dpfl.protocol import wire
from tf_dpfl.protocol.clip_count import report_size
from tf_dpfl.protocol.errors import WireError
from tf_dpfl.protocol.files import sha256_hex
from tf_dpfl.protocol.tensors import Float32

_LOG = logging.getLogger(__name__)
_OCTETS = "application/octet-stream"
# Seconds a device is asked to wait when no body can be taken.
_RETRY_AFTER_S = 5
# Statuses after which the rest of a body is not worth reading.
_CLOSING_STATUSES = {408, 413}
# SQLite's integers end here.
_LARGEST_ROUND_NUMBER = 2**63 - 1

Endpoint = Callable[[Request], Awaitable[Response]]


class _RoundNumber(IntegerConvertor):
    """One way to write a number, and a bound on what is parsed."""

    regex = "0|[1-9][0-9]{0,18}"


register_url_convertor("round", _RoundNumber())


def build_app(
    coordinator: Coordinator, *, body_timeout_s: float, public: Callable[[], dict[str, Any]]
) -> Starlette:
    """The application. `public` gives the figures everybody may see."""
    rim = _Rim(coordinator, body_timeout_s)

    async def status(_request: Request) -> Response:
        return JSONResponse(public())

    async def page(_request: Request) -> Response:
        return HTMLResponse(dashboard.page(public()))

    number = "{number:round}"
    app = Starlette(
        routes=[
            Route("/", page),
            Route(wire.STATUS_PATH, status),
            Route(wire.TASK_PATH, _versioned(rim.task)),
            Route(wire.ENROLL_PATH, _versioned(rim.enroll), methods=["POST"]),
            Route(wire.CLIENT_PATH, _versioned(rim.client)),
            Route(wire.CHECKIN_PATH, _versioned(rim.checkin), methods=["POST"]),
            Route(_template(wire.weights_path, number), _versioned(rim.weights)),
            Route(_template(wire.update_path, number), _versioned(rim.update), methods=["PUT"]),
        ],
        exception_handlers={
            WireError: _refusal,
            HTTPException: _http_refusal,
            ClientDisconnect: _gone,
            Exception: _fault,
        },
    )
    app.router.redirect_slashes = False  # a path is right or refused
    return app


class _Rim:
    """The endpoints of one coordinator."""

    def __init__(self, coordinator: Coordinator, body_timeout_s: float):
        self._coordinator = coordinator
        self._body_timeout_s = body_timeout_s
        plan = coordinator.manifest.plan
        self._report_size = report_size(plan, weights=coordinator.manifest.layout.size)
        self._staging = Staging(nbytes=4 * self._report_size, timeout_s=body_timeout_s)
        self._task = {
            "manifest": coordinator.task.manifest_bytes.decode(),
            "signature": coordinator.task.signature,
        }

    async def task(self, _request: Request) -> Response:
        """The signed manifest; a device needs its task id before it can sign."""
        return JSONResponse(self._task)

    async def enroll(self, request: Request) -> Response:
        """A token and a public key for a device id."""
        body = await read_small_body(request, timeout_s=self._body_timeout_s)
        enrollment = wire.Enrollment.from_json(wire.parse_json(body, what="enroll"))
        return JSONResponse({"device_id": await self._coordinator.enroll(enrollment)})

    async def client(self, request: Request) -> Response:
        """The TFLite file."""
        await self._signed_without_body(request)
        return Response(self._coordinator.task.client, media_type=_OCTETS)

    async def checkin(self, request: Request) -> Response:
        """What the device shall do now."""
        device_id = await self._signed_without_body(request)
        return JSONResponse(self._coordinator.checkin(device_id).to_json())

    async def weights(self, request: Request) -> Response:
        """The model an invited device starts from."""
        device_id = await self._signed_without_body(request)
        weights = await self._coordinator.weights_for(device_id, _number(request))
        return Response(weights, media_type=_OCTETS)

    async def update(self, request: Request) -> Response:
        """One device's update: everything that needs no body is checked before it is read."""
        device_id, digest = self._authenticate(request)
        self._staging.check_length(request)
        number = _number(request)
        if not await self._coordinator.expects_update(device_id, number, digest):
            return _accepted(repeated=True)
        clip_norm = self._coordinator.clip_norm  # the round's, until it closes
        async with self._staging.place():
            body = await self._staging.read(request)
            vector = await asyncio.to_thread(self._checked_report, body, digest, clip_norm)
            new = await self._coordinator.submit(number, Upload(device_id, digest, vector))
        return _accepted(repeated=not new)

    def _checked_report(self, body: bytearray, digest: str, clip_norm: float | None) -> Float32:
        vector = wire.decode_update(body, size=self._report_size, digest=digest)
        return bounded_report(vector, self._coordinator.manifest.plan, clip_norm=clip_norm)

    def _authenticate(self, request: Request) -> tuple[str, str]:
        return authenticate(
            request.headers,
            task_id=self._coordinator.manifest.task_id,
            method=request.method,
            path=request.scope["path"],  # what was routed; no other header has a say
            key_of=self._coordinator.key_of,
        )

    async def _signed_without_body(self, request: Request) -> str:
        device_id, digest = self._authenticate(request)
        body = await read_small_body(request, timeout_s=self._body_timeout_s)
        if digest != EMPTY_DIGEST or sha256_hex(body) != digest:
            raise WireError(
                f"{wire.DIGEST_HEADER} must be the SHA-256 of the empty body this request has"
            )
        return device_id


def _versioned(endpoint: Endpoint) -> Endpoint:
    async def checked(request: Request) -> Response:
        wire.check_version(request.headers.get(wire.VERSION_HEADER))
        return await endpoint(request)

    return checked


def _template(path_of: Callable[[int], str], parameter: str) -> str:
    """The route of a path that holds a round number."""
    return path_of(0).replace("/0/", f"/{parameter}/")


def _number(request: Request) -> int:
    number = int(request.path_params["number"])
    if number > _LARGEST_ROUND_NUMBER:
        raise WireError("no round has such a number; check in again", status=404)
    return number


def _accepted(*, repeated: bool) -> Response:
    return JSONResponse({"accepted": True, "repeated": repeated})


def _answer(message: str, status: int) -> Response:
    headers = {}
    if status in _CLOSING_STATUSES:
        headers["connection"] = "close"
    if status == 503:
        headers["retry-after"] = str(_RETRY_AFTER_S)
    return JSONResponse({"error": message}, status_code=status, headers=headers)


async def _refusal(_request: Request, error: Exception) -> Response:
    status = error.status if isinstance(error, WireError) else 500
    return _answer(str(error), status)


async def _http_refusal(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    reasons = {
        404: "there is nothing at this path; docs/wire.md lists the paths",
        405: f"{request.method} is not answered at this path; docs/wire.md lists the methods",
    }
    return _answer(reasons.get(status, "this request cannot be answered"), status)


async def _gone(_request: Request, _error: Exception) -> Response:
    return _answer("the connection ended before the body did; send it again", 400)


async def _fault(request: Request, error: Exception) -> Response:
    _LOG.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return _answer("the server failed here; try again later, its log says more", 500)
