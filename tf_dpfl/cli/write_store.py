"""The command `dpfl data store`."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from tf_dpfl.cli import arguments
from tf_dpfl.cli.events import shown_events

if TYPE_CHECKING:
    from tf_dpfl.cli.arguments import Commands


def add_parser(commands: Commands) -> None:
    """Adds `store` to `commands`."""
    parser = commands.add_parser(
        "store",
        help="write all clients' examples as one store that workers read by id",
        description="Write the examples that a plan gives its clients, and its test split, as a "
        'record store: a folder that a plan names with data.source = "store", that opens at '
        "once however many clients it has, and that every worker reads from its own disk.",
    )
    arguments.add_plan(parser)
    arguments.add_out(parser, metavar="DIR", about="a folder, new or empty")
    arguments.add_overrides(parser)
    arguments.add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Writes the store, then says how much is in it."""
    plan = arguments.plan_of(args.plan, overrides=args.set)
    arguments.require_absent_or_folder(args.out)
    arguments.quiet_tensorflow()
    from tf_dpfl.data.federated import load_federated_data
    from tf_dpfl.data.store import write_store

    data = load_federated_data(plan)
    write_store(data, args.out)
    with shown_events(as_json=args.json) as show:
        show(
            {
                "event": "store written",
                "clients": data.population,
                "examples": len(data.target),
                "test_examples": data.test_examples,
                "folder": str(args.out),
            }
        )
