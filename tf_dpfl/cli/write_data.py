"""The command `dpfl data write`."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from tf_dpfl.cli import arguments
from tf_dpfl.cli.events import shown_events
from tf_dpfl.protocol.errors import DataError
from tf_dpfl.protocol.files import sync_folder

if TYPE_CHECKING:
    from tf_dpfl.cli.arguments import Commands


def add_parser(commands: Commands) -> None:
    """Adds `write` to `commands`."""
    parser = commands.add_parser(
        "write",
        help="write one .npz file per client",
        description="Write the examples that a plan gives its clients, one .npz file (arrays x "
        "and y) for each, so that device processes can train on them.",
    )
    arguments.add_plan(parser)
    arguments.add_out(parser, metavar="DIR", about="a folder, new or empty")
    parser.add_argument(
        "--clients",
        type=_client_range,
        metavar="A:B",
        help="only the clients from A on and before B, counted from 0; default: all",
    )
    parser.add_argument(
        "--test",
        type=Path,
        metavar="FILE",
        help="also write the test split, which no client has, to this .npz file",
    )
    arguments.add_overrides(parser)
    arguments.add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Writes the clients' files, then says how many."""
    plan = arguments.plan_of(args.plan, overrides=args.set)
    arguments.require_absent_or_folder(args.out)
    if args.out.is_dir() and any(args.out.iterdir()):
        raise DataError(f"{args.out}: is not empty; files of other clients would stay in it")
    clients = args.clients or range(plan.clients.population)
    if clients.stop > plan.clients.population:
        raise DataError(
            f"--clients {clients.start}:{clients.stop}: the plan has "
            f"clients.population={plan.clients.population}"
        )
    if args.test and args.test.is_dir():
        raise DataError(f"--test {args.test}: is a folder; name a file")
    if args.test and args.test.resolve().parent == args.out.resolve():
        raise DataError(f"--test {args.test}: lies among the clients' files; choose another folder")
    arguments.quiet_tensorflow()
    from tf_dpfl.data.federated import load_federated_data
    from tf_dpfl.data.user_files import write_client_files, write_test_file

    data = load_federated_data(plan)
    if args.test and not data.test_examples:
        raise DataError("--test: this data set has no test split; set data.test_path")
    with _appearing_whole(args.out) as folder:
        write_client_files(data, folder, clients=clients)
        if args.test:
            write_test_file(data, args.test)
    with shown_events(as_json=args.json) as show:
        show({"event": "clients written", "clients": len(clients), "folder": str(args.out)})
        if args.test:
            examples = data.test_examples
            show({"event": "test written", "examples": examples, "file": str(args.test)})


@contextlib.contextmanager
def _appearing_whole(out: Path) -> Iterator[Path]:
    """A new folder that becomes `out` (absent or empty) at the end, or nothing does."""
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".{out.name}.{os.urandom(6).hex()}.tmp")
    temporary.mkdir()
    try:
        yield temporary
        os.replace(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    sync_folder(out.parent)


def _client_range(text: str) -> range:
    match = re.fullmatch(r"(\d+):(\d+)", text)
    if not match or not int(match[1]) < int(match[2]):
        raise argparse.ArgumentTypeError(f"{text!r} must be A:B with integers 0 <= A < B")
    return range(int(match[1]), int(match[2]))
