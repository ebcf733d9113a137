"""The command `dpfl simulate`."""

from __future__ import annotations

import argparse
import time
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
        description="Run a plan in TensorFlow Federated. RUN receives the calibrated plan, one "
        "line of metrics a round (and the same for TensorBoard), checkpoints, the trained model, "
        "its privacy card and a report. "
        "A run that was stopped goes on where it stopped when it is started again.",
    )
    arguments.add_plan(parser)
    arguments.add_out(parser, metavar="RUN", about="the run's folder, new or to resume")
    arguments.add_overrides(parser)
    arguments.add_seed(parser, repeats="cohorts and noise")
    arguments.add_workers(parser)
    arguments.add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Simulates `args.plan` into `args.out`."""
    plan = arguments.plan_of(args.plan, overrides=args.set)
    arguments.require_absent_or_folder(args.out)
    arguments.quiet_tensorflow()
    with shown_events(as_json=args.json) as on_event:
        began = time.monotonic()
        from tf_dpfl.simulation.simulate import simulate

        on_event({"event": "imported", "seconds": round(time.monotonic() - began, 2)})
        try:
            simulate(plan, args.out, seed=args.seed, workers=args.workers, on_event=on_event)
        except KeyboardInterrupt:
            if not arguments.is_run(args.out):
                raise
            raise KeyboardInterrupt(
                f"{args.out} goes on from its last checkpoint when the same command is run again"
            ) from None
