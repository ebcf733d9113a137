"""The command `dpfl models`."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

from tf_dpfl.cli import arguments

if TYPE_CHECKING:
    from tf_dpfl.cli.arguments import Commands


def add_parser(commands: Commands) -> None:
    """Adds `models` to `commands`."""
    parser = commands.add_parser(
        "models",
        help="list the models a plan can name",
        description="List the models a plan can name in task.model. Any function of yours can be "
        'named too, as "package.module:function".',
    )
    arguments.add_json(parser, about="one JSON object")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Prints the registry's names and their one-line descriptions."""
    arguments.quiet_tensorflow()
    from models.registry import registered_models

    described = registered_models()
    if args.json:
        print(json.dumps(described))
        return
    width = max(map(len, described))
    for name, description in described.items():
        print(f"{name:{width}}  {description}")
