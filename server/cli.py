"""The command `dpfl-server`: reading its arguments, and its exit status.

Nothing heavy is imported before a command runs, so that --help is quick.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from tf_dpfl.protocol.errors import DpflError


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `dpfl-server`; returns 0 when it did what it says, 2 on bad input."""
    arguments = _parser().parse_args(argv)
    try:
        return int(arguments.command(arguments))
    except DpflError as error:
        for line in str(error).splitlines():
            print(f"dpfl-server: {line}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except OSError as error:
        print(f"dpfl-server: {error}", file=sys.stderr)
        return 2


def _run(arguments: argparse.Namespace) -> int:
    from server.events import Reporter
    from server.service import Settings, serve

    settings = Settings(
        task=arguments.task,
        state=arguments.state,
        host=arguments.host,
        port=arguments.port,
        tokens=arguments.tokens,
        reports_per_round=arguments.reports_per_round,
        round_deadline_s=arguments.round_deadline,
        max_epsilon=arguments.max_epsilon,
        test_data=arguments.test_data,
        start_when=arguments.start_when,
        exit_when_done=arguments.exit_when_done,
        linger_s=arguments.linger,
        poll_s=arguments.poll,
        body_timeout_s=arguments.body_timeout,
    )
    done = serve(settings, Reporter(as_json=arguments.json))
    # A server told to stop did what it was told, unless it should have ended the task.
    return 0 if done or not settings.exit_when_done else 1


def _tokens(arguments: argparse.Namespace) -> int:
    from server.service import create_tokens

    create_tokens(arguments.state, count=arguments.count, out=arguments.out)
    if arguments.json:
        event = {"event": "tokens", "count": arguments.count, "file": str(arguments.out)}
        print(json.dumps(event))
    else:
        print(f"{arguments.count} tokens in {arguments.out}")
    return 0


def _status(arguments: argparse.Namespace) -> int:
    from server.status import operator_status

    status = operator_status(arguments.state)
    if arguments.json:
        print(json.dumps({"event": "status", **status}))
    else:
        for name, value in status.items():
            print(f"{name.replace('_', ' ')}: {'-' if value is None else value}")
    return 0


class _Parser(argparse.ArgumentParser):
    """A parser that says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="dpfl-server",
        description="Runs federated rounds with real devices over HTTP.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    run = commands.add_parser(
        "run",
        help="run a task's rounds; goes on from its state",
        description="Runs the rounds of TASK (a folder from dpfl export client) over HTTP, "
        "keeping everything in STATE; after a stop or a crash the same command goes on.",
    )
    run.set_defaults(command=_run)
    run.add_argument("task", metavar="TASK", type=Path, help="folder from dpfl export client")
    _add_state(run)
    run.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    run.add_argument(
        "--port",
        type=_integer(at_least=0, at_most=65535),
        default=0,
        help="port to listen on; 0, the default, takes a free one (see STATE/url.txt)",
    )
    run.add_argument(
        "--tokens",
        type=_integer(at_least=0),
        default=0,
        metavar="N",
        help="make N enrolment tokens in STATE/tokens.txt on the first start",
    )
    run.add_argument(
        "--start-when",
        type=_integer(at_least=1),
        metavar="N",
        help="open rounds once N devices are enrolled (default: so many that the smallest "
        "cohort is invited on average; the whole population unless sampling is poisson)",
    )
    run.add_argument(
        "--reports-per-round",
        type=_integer(at_least=1),
        metavar="N",
        help="close a round at N reports (default: everyone invited); if more were invited, "
        "one report displaces another and the round is charged with half the noise",
    )
    run.add_argument(
        "--round-deadline",
        type=_seconds,
        default=600.0,
        metavar="SECONDS",
        help="close a round after this time: released with the smallest cohort, aborted "
        "otherwise (%(default)g)",
    )
    run.add_argument(
        "--max-epsilon",
        type=_number,
        metavar="E",
        help="stop before central epsilon exceeds E (default: the manifest's own claim)",
    )
    run.add_argument(
        "--test-data",
        type=Path,
        metavar="FILE.npz",
        help="arrays x and y to evaluate every released model on, through TFLite",
    )
    run.add_argument(
        "--exit-when-done",
        action="store_true",
        help="end when the task is done and the devices were told (default: keep answering)",
    )
    run.add_argument(
        "--linger",
        type=_seconds,
        default=10.0,
        metavar="SECONDS",
        help="with --exit-when-done, wait at most so long for devices to be told (%(default)g)",
    )
    run.add_argument(
        "--poll",
        type=_seconds,
        default=1.0,
        metavar="SECONDS",
        help="how often a waiting device is asked to check in (%(default)g)",
    )
    run.add_argument(
        "--body-timeout",
        type=_seconds,
        default=60.0,
        metavar="SECONDS",
        help="an upload that takes longer loses its place (%(default)g)",
    )
    _add_json(run)

    tokens = commands.add_parser(
        "tokens",
        help="make one-time enrolment tokens",
        description="Adds one-time enrolment tokens to STATE, also while the server runs. The "
        "tokens are only in FILE: STATE keeps their digests.",
    )
    tokens.set_defaults(command=_tokens)
    _add_state(tokens)
    tokens.add_argument(
        "--count", type=_integer(at_least=1), required=True, metavar="N", help="how many"
    )
    tokens.add_argument(
        "--out", type=Path, required=True, metavar="FILE", help="new file, one token a line"
    )
    _add_json(tokens)

    status = commands.add_parser(
        "status",
        help="print a state's figures",
        description="Prints the figures of STATE, whether its server runs or not. Counts of "
        "devices and reports are for the operator: the noise does not cover them.",
    )
    status.set_defaults(command=_status)
    _add_state(status)
    _add_json(status)
    return parser


def _add_state(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--state", type=Path, required=True, metavar="DIR", help="the server's state folder"
    )


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="one JSON object a line")


def _integer(*, at_least: int, at_most: int = 2**31 - 1) -> Callable[[str], int]:
    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = at_least - 1
        if not at_least <= value <= at_most:
            raise argparse.ArgumentTypeError(
                f"{text} must be an integer from {at_least} to {at_most}"
            )
        return value

    return parse


def _number(text: str) -> float:
    value: Any
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (value > 0 and math.isfinite(value)):
        raise argparse.ArgumentTypeError(f"{text} must be a finite number > 0")
    return float(value)


def _seconds(text: str) -> float:
    value = _number(text)
    if not value <= 1e8:
        raise argparse.ArgumentTypeError(f"{text} must be at most 1e8 seconds")
    return value


if __name__ == "__main__":
    sys.exit(main())
