"""The service: a state folder, a socket and a task's coordinator, until told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn
import uvloop

from server import admission, checkpoints, enrolments
from server.app import build_app
from server.blobs import BlobStore
from server.budget import Budget
from server.closing import Closing
from server.coordinator import Coordinator
from server.evaluation import Evaluator, load_test_data
from server.events import Reporter
from server.http_protocol import bounded_http
from server.rounds import Policy, check_policy, default_start_when
from server.store import Store
from server.task_folder import ServedTask, adopt_task, digest_of
from tf_dpfl.protocol.checks import finite_or_none
from tf_dpfl.protocol.errors import StateError
from tf_dpfl.protocol.files import write_atomically

DATABASE_FILE = "server.sqlite"
TOKENS_FILE = "tokens.txt"
URL_FILE = "url.txt"
# Seconds requests under way get when the server stops.
_GRACE_S = 10


@dataclass(frozen=True)
class Settings:
    """One run of the server; None means the plan's or the default."""

    task: Path
    state: Path
    host: str = "127.0.0.1"
    port: int = 0
    tokens: int = 0
    reports_per_round: int | None = None
    round_deadline_s: float = 600.0
    max_epsilon: float | None = None
    test_data: Path | None = None
    start_when: int | None = None
    exit_when_done: bool = False
    linger_s: float = 10.0
    poll_s: float = 1.0
    body_timeout_s: float = 60.0


def serve(
    settings: Settings,
    reporter: Reporter,
    *,
    on_step: Callable[[str], None] = lambda _name: None,
) -> bool:
    """Runs the server until the task is done (if asked), SIGTERM or SIGINT.

    Returns whether the task is done. `on_step` is called after every named
    step of a round's life; tests crash the process there.

    Raises:
      DpflError: the task, state, port, settings or test data cannot be used.
    """
    _make_folder(settings.state)
    with _only_server_of(settings.state), contextlib.ExitStack() as stack:
        (settings.state / URL_FILE).unlink(missing_ok=True)  # an earlier run's
        task = adopt_task(settings.task, state=settings.state)
        plan = task.manifest.plan
        policy = check_policy(
            Policy(
                start_when=settings.start_when or default_start_when(plan),
                reports_per_round=settings.reports_per_round,
                round_deadline_s=settings.round_deadline_s,
                max_epsilon=settings.max_epsilon,
            ),
            plan,
        )
        store = Store(settings.state / DATABASE_FILE, create=True)
        stack.callback(store.close)
        store.bind_task(digest_of(task))
        listener = _bind(settings.host, settings.port)
        stack.callback(listener.close)
        _provide_tokens(store, settings, reporter)
        closing = _closing(settings, task, store, on_step)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(_serve(settings, policy, closing, listener, reporter))


def create_tokens(state: Path, *, count: int, out: Path) -> None:
    """Adds `count` enrolment tokens to the state and writes them to `out`, one a line."""
    if out.exists():
        raise StateError(f"{out} exists; give another --out, its tokens may be in use")
    _make_folder(state)
    tokens = [admission.new_token() for _ in range(count)]
    store = Store(state / DATABASE_FILE, create=True)
    try:
        enrolments.add_tokens(store, map(admission.token_digest, tokens))
    finally:
        store.close()
    _write_tokens(out, tokens)


def _make_folder(state: Path) -> None:
    try:
        state.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StateError(
            f"--state {state}: cannot be made: {error.strerror or error}; give another folder"
        ) from None


def _closing(
    settings: Settings, task: ServedTask, store: Store, on_step: Callable[[str], None]
) -> Closing:
    """The parts that close rounds, over a state made whole again after a crash."""
    if store.last_round_number() == 0 and store.ended() is None:
        task.manifest.check_validity(time.time())
    evaluator = None
    if settings.test_data is not None:
        examples = load_test_data(settings.test_data, task.manifest)
        evaluator = Evaluator(task.client, examples)
    blobs = BlobStore(settings.state / "blobs")
    blobs.delete_all_but(store.blobs_in_use())
    closing = Closing(
        state=settings.state,
        task=task,
        store=store,
        blobs=blobs,
        budget=Budget(task.manifest, max_epsilon=settings.max_epsilon),
        evaluator=evaluator,
        clock=time.time,
        on_step=on_step,
    )
    released = store.released_rounds()
    if released == 0:
        first = task.initial_weights
        checkpoints.write_checkpoint(settings.state, released_rounds=0, weights=first)
        checkpoints.write_latest(settings.state, released_rounds=0, weights=first)
        closing.write_card()
    elif not checkpoints.is_published(settings.state):
        closing.publish_again()
    return closing


async def _serve(
    settings: Settings,
    policy: Policy,
    closing: Closing,
    listener: socket.socket,
    reporter: Reporter,
) -> bool:
    coordinator = Coordinator(closing, policy, reporter, poll_s=settings.poll_s)
    prior_epsilon = finite_or_none(closing.budget.epsilon_of([]))
    app = build_app(
        coordinator,
        body_timeout_s=settings.body_timeout_s,
        public=lambda: public_status(coordinator, prior_epsilon),
    )
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    server = _Uvicorn(
        uvicorn.Config(
            app,
            http=bounded_http(head_timeout_s=settings.body_timeout_s),
            ws="none",
            lifespan="off",
            access_log=False,
            log_config=None,
            log_level="critical",
            timeout_keep_alive=75,
            timeout_graceful_shutdown=_GRACE_S,
        )
    )
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    while not server.started and not serving.done():
        await asyncio.sleep(0.005)
    url = _url(settings.host, listener)
    write_atomically(settings.state / URL_FILE, url.encode() + b"\n")
    reporter.emit("listening", url=url, task_id=coordinator.manifest.task_id)
    helpers = [serving]
    if settings.exit_when_done:
        helpers.append(asyncio.create_task(_stop_when_done(coordinator, settings, stop)))
    serving.add_done_callback(lambda _: stop.set())
    try:
        await coordinator.run(stop)
    finally:
        server.should_exit = True
        for helper in helpers[1:]:
            helper.cancel()
        await asyncio.gather(*helpers, return_exceptions=True)
        await coordinator.close()
    done = coordinator.ended is not None
    if not done:
        reporter.emit("stopped")
    return done


async def _stop_when_done(
    coordinator: Coordinator, settings: Settings, stop: asyncio.Event
) -> None:
    """Stops once every device was told that the task is done, or after `linger_s`."""
    while coordinator.ended is None:
        await asyncio.sleep(0.05)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(settings.linger_s):
            while len(coordinator.told_done) < coordinator.enrolled:
                await asyncio.sleep(0.05)
    stop.set()


class _Uvicorn(uvicorn.Server):
    """uvicorn without its signal handlers: the service has its own."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def public_status(coordinator: Coordinator, prior_epsilon: float | None) -> dict[str, Any]:
    """What everybody may see: no device, and no count of a cohort (it is not noised)."""
    plan = coordinator.manifest.plan
    results = coordinator.results
    epsilon = results[-1]["central_epsilon"] if results else prior_epsilon
    current = coordinator.open
    adapts = {} if coordinator.clip_norm is None else {"clip_norm": coordinator.clip_norm}
    shown = ("round", "accuracy", "loss", "central_epsilon", *adapts)
    return {
        "task_id": coordinator.manifest.task_id,
        "state": coordinator.state,
        "reason": coordinator.ended,
        "planned_rounds": plan.server.rounds,
        "released_rounds": coordinator.released_rounds,
        "open_round_number": None if current is None else current.round.number,
        "privacy": {
            "central_epsilon": epsilon,
            "delta": plan.privacy.delta,
            "unit": plan.privacy.unit,
            "noise": plan.privacy.noise,
            "sampling": plan.clients.sampling,
            **adapts,
        },
        "rounds": [{key: result[key] for key in shown} for result in results],
    }


def _bind(host: str, port: int) -> socket.socket:
    """A listening socket; StateError when the address cannot be had."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.socket(family, socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:  # the latter from names that are no host names
        reason = getattr(error, "strerror", None) or error
        raise StateError(f"--host {host}: {reason}; give an address of this machine") from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(2048)
    except (OSError, OverflowError) as error:
        listener.close()
        reason = getattr(error, "strerror", None) or error
        raise StateError(f"--host {host} --port {port}: {reason}; give another --port") from None
    return listener


def _url(host: str, listener: socket.socket) -> str:
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{listener.getsockname()[1]}"


@contextlib.contextmanager
def _only_server_of(state: Path) -> Iterator[None]:
    """Holds the state's lock, which ends with this process however that ends."""
    with open(state / "lock", "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise StateError(f"{state}: another dpfl-server runs on this state") from None
        yield


def _provide_tokens(store: Store, settings: Settings, reporter: Reporter) -> None:
    """Makes `--tokens` once: the file comes first, so a crash loses no token."""
    if settings.tokens == 0:
        return
    path = settings.state / TOKENS_FILE
    if not path.exists():
        _write_tokens(path, [admission.new_token() for _ in range(settings.tokens)])
    try:
        tokens = path.read_text(encoding="ascii").split()
    except ValueError:
        raise StateError(f"{path}: holds no tokens; remove it, and new ones are made") from None
    enrolments.add_tokens(store, map(admission.token_digest, tokens))
    reporter.emit("tokens", count=len(tokens), file=str(path))


def _write_tokens(path: Path, tokens: list[str]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, "".join(f"{t}\n" for t in tokens).encode(), mode=0o600)
    except OSError as error:
        raise StateError(
            f"{path}: tokens cannot be written: {os.strerror(error.errno or 0)}"
        ) from None
