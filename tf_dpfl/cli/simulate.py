"""The command `dpfl simulate`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from tf_dpfl.cli import arguments
from tf_dpfl.cli.events import shown_events

if TYPE_CHECKING:
    from tf_dpfl.cli.arguments import Commands


def add_parser(commands: Commands) -> None:
    """Adds `simulate` to `commands`."""
    parser = commands.add_parser(
        "simulate",
        help="run a plan in TensorFlow Federated",
        description="Run a plan in TensorFlow Federated. OUT receives the calibrated plan, one "
        "line of metrics a round, checkpoints, the trained model, its privacy card and a report. "
        "A run that was stopped goes on where it stopped when it is started again.",
    )
    parser.add_argument("plan", type=Path, metavar="PLAN", help="the plan (TOML)")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="RUN", help="the run's folder, new or to resume"
    )
    arguments.add_overrides(parser)
    parser.add_argument(
        "--seed",
        type=arguments.whole_number,
        help="make cohorts and noise repeatable, for studies only: whoever knows the seed can "
        "take the noise off; default: the operating system's randomness",
    )
    arguments.add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Simulates `args.plan` into `args.out`."""
    plan = arguments.plan_of(args.plan, overrides=args.set)
    arguments.require_absent_or_folder(args.out)
    arguments.quiet_tensorflow()
    from tf_dpfl.simulation.simulate import simulate

    with shown_events(as_json=args.json) as on_event:
        simulate(plan, args.out, seed=args.seed, on_event=on_event)
