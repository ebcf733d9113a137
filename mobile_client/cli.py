"""The command `dpfl-device`: run one device, run a fleet, look at a state folder.

Exit status: 0 the task has ended and the device did its part; 2 bad input or a
task, server or folder that cannot be used; 3 stopped by the device's own limits;
130 interrupted.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from mobile_client.limits import Limits

OK = 0
BAD_INPUT = 2
OWN_LIMITS = 3
INTERRUPTED = 130

_EXIT_CODES = (
    "exit status: 0 the task has ended and the device did its part; 2 bad input, or a task, "
    "server or state folder that cannot be used; 3 stopped by the device's own limits; "
    "130 interrupted"
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    arguments = _parser().parse_args(argv)
    from tf_dpfl.protocol.errors import BudgetError, DpflError

    try:
        return int(arguments.command(arguments))
    except BudgetError as error:
        print(f"dpfl-device: {error}", file=sys.stderr)
        return OWN_LIMITS
    except DpflError as error:
        for line in str(error).splitlines():
            print(f"dpfl-device: {line}", file=sys.stderr)
        return BAD_INPUT
    except OSError as error:
        print(f"dpfl-device: {error}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("dpfl-device: interrupted; start it again to go on", file=sys.stderr)
        return INTERRUPTED


class _Parser(argparse.ArgumentParser):
    """A parser that says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(BAD_INPUT, f"{self.prog}: {message}; see {self.prog} --help\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="dpfl-device",
        description="A device of federated learning with differential privacy.",
        epilog=_EXIT_CODES,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    run = commands.add_parser("run", help="one device, until the task ends", epilog=_EXIT_CODES)
    _add_task_options(run)
    run.add_argument(
        "--data",
        required=True,
        type=Path,
        metavar="FILE.npz",
        help="this device's own examples: arrays x and y",
    )
    run.add_argument(
        "--state",
        required=True,
        type=Path,
        metavar="DIR",
        help="this device's key, ledger and outbox; made on first use",
    )
    run.add_argument("--token", default="", help="one-time token, for the first run only")
    run.set_defaults(command=_run)

    fleet = commands.add_parser(
        "fleet", help="many independent devices in a few processes", epilog=_EXIT_CODES
    )
    _add_task_options(fleet)
    fleet.add_argument("--count", required=True, type=int, metavar="N", help="devices")
    fleet.add_argument(
        "--processes", type=int, default=2, metavar="P", help="worker processes (default 2)"
    )
    fleet.add_argument(
        "--data",
        required=True,
        type=Path,
        metavar="DIR",
        help="one .npz a device; the i-th by name is device i's",
    )
    fleet.add_argument(
        "--state", required=True, type=Path, metavar="DIR", help="holds one state folder a device"
    )
    fleet.add_argument(
        "--tokens",
        required=True,
        type=Path,
        metavar="FILE",
        help="one-time tokens, one a line; the i-th is device i's",
    )
    fleet.set_defaults(command=_fleet)

    status = commands.add_parser(
        "status", help="what a device has sent, and its local epsilon", epilog=_EXIT_CODES
    )
    status.add_argument(
        "--state", required=True, type=Path, metavar="DIR", help="the device's state folder"
    )
    status.add_argument("--json", action="store_true", help="one JSON line")
    status.set_defaults(command=_status)
    return parser


def _add_task_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--server", required=True, metavar="URL", help="where dpfl-server listens")
    parser.add_argument(
        "--task-key",
        required=True,
        metavar="HEX_OR_FILE",
        help="the task author's public key, got from the author and not from "
        "the server: 64 hex digits or a file with them",
    )
    limits = parser.add_argument_group("the device's own limits")
    limits.add_argument(
        "--max-local-epsilon",
        type=_number,
        default=math.inf,
        metavar="E",
        help="largest epsilon of all its reports against whoever sees them singly (the server), "
        "for the plan's unit",
    )
    limits.add_argument(
        "--max-central-epsilon",
        type=_number,
        default=math.inf,
        metavar="E",
        help="largest epsilon a task may claim for the released models",
    )
    limits.add_argument(
        "--min-noise-multiplier",
        type=_number,
        default=0.0,
        metavar="Z",
        help="smallest noise of a round's sum (unit example: of a step's sum), in clip norms",
    )
    limits.add_argument(
        "--allow-trusted-server",
        action="store_true",
        help="accept plans in which the server adds the noise",
    )
    limits.add_argument(
        "--only-user-level",
        action="store_true",
        help="refuse plans that protect single examples and not this device's data as a whole",
    )
    parser.add_argument(
        "--patience",
        type=_number,
        default=600.0,
        metavar="SECONDS",
        help="give up when the server cannot be reached for so long (default 600)",
    )
    parser.add_argument("--json", action="store_true", help="one JSON line per event")


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not value >= 0:
        raise argparse.ArgumentTypeError(f"{text} must be a number >= 0")
    return value


def _task_key(text: str) -> str:
    """The pinned key as hex, from the argument itself or from the file it names."""
    from tf_dpfl.protocol import signing
    from tf_dpfl.protocol.errors import TaskError

    key = text.strip()
    if len(key) != 64 or Path(key).is_file():
        try:
            with open(text, "rb") as file:
                key = file.read(4096).decode("ascii", "replace").strip()
        except (OSError, ValueError) as error:
            raise TaskError(
                f"--task-key {text[:80]}: neither 64 hex digits nor a readable file: {error}"
            ) from None
        if len(key) != 64:
            raise TaskError(f"--task-key {text[:80]}: the file does not hold 64 hex digits alone")
    signing.parse_public_key(key)
    return key


def _limits(arguments: argparse.Namespace) -> Limits:
    from mobile_client.limits import Limits

    return Limits(
        max_local_epsilon=arguments.max_local_epsilon,
        max_central_epsilon=arguments.max_central_epsilon,
        min_noise_multiplier=arguments.min_noise_multiplier,
        allow_trusted_server=arguments.allow_trusted_server,
        only_user_level=arguments.only_user_level,
    )


def _run(arguments: argparse.Namespace) -> int:
    from mobile_client.events import Printer
    from mobile_client.runner import DeviceConfig, run_device
    from mobile_client.session import Settings
    from mobile_client.transport import open_client

    settings = Settings(
        task_key=_task_key(arguments.task_key),
        data=arguments.data,
        token=arguments.token,
        limits=_limits(arguments),
        patience_s=arguments.patience,
    )
    printer = Printer(as_json=arguments.json)
    with open_client(arguments.server) as client:
        run_device(DeviceConfig(settings, arguments.state), client=client, emit=printer.emit)
    return OK


def _fleet(arguments: argparse.Namespace) -> int:
    from mobile_client.events import Printer
    from mobile_client.fleet import fleet_devices, run_fleet
    from mobile_client.session import Settings
    from mobile_client.transport import open_client

    open_client(arguments.server).close()  # a bad URL is one line, not one a worker
    settings = Settings(
        task_key=_task_key(arguments.task_key),
        data=arguments.data,
        limits=_limits(arguments),
        patience_s=arguments.patience,
    )
    devices = fleet_devices(
        count=arguments.count,
        data=arguments.data,
        state=arguments.state,
        tokens=arguments.tokens,
        settings=settings,
    )
    printer = Printer(as_json=arguments.json)
    result = run_fleet(
        devices, server=arguments.server, processes=arguments.processes, emit=printer.emit
    )
    printer.emit({"event": "fleet", **asdict(result)})
    if result.failed:
        return BAD_INPUT
    return OWN_LIMITS if result.limited else OK


def _status(arguments: argparse.Namespace) -> int:
    from mobile_client.events import Printer
    from mobile_client.status import device_status

    Printer(as_json=arguments.json).emit(device_status(arguments.state))
    return OK


if __name__ == "__main__":
    sys.exit(main())
