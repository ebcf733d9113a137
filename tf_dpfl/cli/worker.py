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


def add_parser(commands: Commands) -> None:
    """Adds `worker` to `commands`."""
    parser = commands.add_parser(
        "worker",
        help="compute for simulations on other machines",
        description="Run TensorFlow Federated's worker, until interrupted, for dpfl simulate "
        "--workers. It takes work from whoever reaches its port, on every network interface, and "
        "work can read this machine's files: close the port from outside (docs/operations.md).",
    )
    parser.add_argument(
        "--port", type=arguments.port, required=True, metavar="P", help="TCP port to listen on"
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
    from tf_dpfl.simulation.worker_process import (
        require_free_port,
        start_worker,
        stop_worker,
        usable_cores,
    )

    require_free_port(args.port)
    cores = args.cores or usable_cores()
    with shown_events(as_json=args.json) as show:
        process = start_worker(args.port, concurrent_calls=cores)
        try:
            print(
                f"dpfl: port {args.port} takes work from everybody who reaches it, on every "
                "interface of this machine: close it from outside, see docs/operations.md",
                file=sys.stderr,
            )
            show({"event": "worker started", "port": args.port, "cores": cores})
            while process.poll() is None:
                time.sleep(_LOOK_EVERY_S)
        finally:
            stop_worker(process)
    raise StateError(
        f"TFF's worker ended with status {process.returncode} (-9 is mostly the system's answer "
        "to a lack of memory); start it again, simulations find it"
    )
