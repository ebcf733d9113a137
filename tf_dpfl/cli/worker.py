"""The command `dpfl worker`."""

from __future__ import annotations

import argparse
import sys
import time
from typing import TYPE_CHECKING

from tf_dpfl.cli import arguments
from tf_dpfl.cli.events import shown_events
from tf_dpfl.protocol.errors import StateError

if TYPE_CHECKING:
    from tf_dpfl.cli.arguments import Commands

_LOOK_EVERY_S = 0.5
_LOOPBACKS = ("127.0.0.1", "::1", "localhost")


def add_parser(commands: Commands) -> None:
    """Adds `worker` to `commands`."""
    parser = commands.add_parser(
        "worker",
        help="compute for simulations on other machines",
        description="Run TensorFlow Federated's worker, until interrupted, for dpfl simulate "
        "--workers. It does what whoever reaches its port asks for, which can be to read and "
        "write this user's files: let nobody else reach it (docs/operations.md).",
    )
    parser.add_argument(
        "--port",
        type=arguments.port,
        required=True,
        metavar="P",
        help="TCP port; 0 takes a free one",
    )
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        metavar="ADDRESS",
        help="address to listen on; default: %(default)s, for a tunnel or the same machine",
    )
    parser.add_argument(
        "--cores",
        type=arguments.positive_number,
        metavar="N",
        help="shards computed at a time; default: every core this process may use",
    )
    arguments.add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Runs a worker until it is interrupted."""
    from tf_dpfl.simulation.worker_process import start_worker, usable_cores

    cores = args.cores or usable_cores()
    with shown_events(as_json=args.json) as show:
        worker = start_worker(args.port, host=args.host, concurrent_calls=cores)
        host = "every interface" if worker.on_every_interface else args.host
        try:
            if host not in _LOOPBACKS:
                print(
                    f"dpfl: whoever reaches port {worker.port} of {host} can read and write this "
                    "user's files; close it from outside, see docs/operations.md",
                    file=sys.stderr,
                )
            show({"event": "worker started", "host": host, "port": worker.port, "cores": cores})
            while worker.process.poll() is None:
                time.sleep(_LOOK_EVERY_S)
        finally:
            worker.stop()
    status = worker.process.returncode
    raise StateError(
        f"TFF's worker ended with status {status} (-9 is mostly the system's answer "
        "to a lack of memory); start it again, simulations find it"
    )
