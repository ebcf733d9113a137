"""The command `dpfl compare`."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tf_dpfl.cli import arguments
from tf_dpfl.cli.events import shown_events, told_in_words

if TYPE_CHECKING:
    from tf_dpfl.cli.arguments import Commands
    from tf_dpfl.simulation.comparing import ComparisonResult


def add_parser(commands: Commands) -> None:
    """Adds `compare` to `commands`."""
    parser = commands.add_parser(
        "compare",
        help="train a plan's task centrally, federated and with each kind of noise, side by side",
        description="Train the task of a plan in every way that fits it: centrally and federated "
        "without privacy (central, federated), and federated at the plan's own epsilon with noise "
        "on devices (device-gaussian) or on the server (server-gaussian, server-tree, "
        "server-banded). DIR receives a report (compare.html), a row for each variant and round "
        "(compare.csv), a row for each variant (variants.csv), everything as JSON (compare.json), "
        "and a RUN for each variant. A comparison that was stopped goes on where it stopped when "
        "it is started again.",
    )
    arguments.add_plan(parser)
    arguments.add_out(parser, metavar="DIR", about="the comparison's folder, new or to resume")
    arguments.add_data_is(
        parser,
        about="whose data it runs on: with public or synthetic ones it costs nothing; with private "
        "ones the epsilons of all variants add up, which is stated, and those without privacy "
        "are run only if --only names them",
    )
    parser.add_argument(
        "--only",
        action="extend",
        nargs="+",
        default=[],
        metavar="NAME",
        help="train these variants alone; others can follow in the same DIR",
    )
    arguments.add_overrides(parser)
    arguments.add_seed(parser, repeats="the comparison")
    arguments.add_workers(parser)
    arguments.add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Compares the variants of `args.plan` in `args.out`."""
    plan = arguments.plan_of(args.plan, overrides=args.set)
    arguments.require_absent_or_folder(args.out)
    from tf_dpfl.simulation.comparing_plans import comparison_of

    comparison = comparison_of(plan, data_is=args.data, only=args.only)
    arguments.quiet_tensorflow()
    with shown_events(as_json=args.json) as on_event:
        from tf_dpfl.simulation.comparing import run_comparison

        words = {"comparison": _comparison_lines, "variant": _variant_lines}
        with arguments.resumable(args.out):
            result = run_comparison(
                comparison,
                args.out,
                seed=args.seed,
                workers=args.workers,
                on_event=on_event if args.json else told_in_words(on_event, words),
            )
    if not args.json:
        _print_result(result)


def _comparison_lines(event: Mapping[str, Any]) -> list[str]:
    left_out = [f"  not compared: {n}: {why}" for n, why in event["not_compared"].items()]
    return [f"variants: {', '.join(event['variants'])}", *left_out, *event["privacy_in_words"]]


def _variant_lines(event: Mapping[str, Any]) -> list[str]:
    return [
        f"variant {event['number']}/{event['variants']}: {event['variant']}, accuracy "
        f"{event['accuracy']:.4f}, seconds {event['seconds']:g}"
    ]


def _print_result(result: ComparisonResult) -> None:
    """The table, and where things are."""
    rows = [
        (
            outcome.name,
            f"{outcome.accuracy:.4f}",
            f"{outcome.best[0]:.4f}",
            f"{outcome.central_epsilon:.4g}",
            f"{outcome.local_epsilons[1]:.4g}",
            f"{outcome.seconds:.1f}",
            f"{outcome.traffic.down / 1000:.4g}",
            f"{outcome.traffic.once / 1000:.4g} once"
            if outcome.traffic.once
            else f"{outcome.traffic.up / 1000:.4g}",
        )
        for outcome in result.outcomes
    ]
    head = ("variant", "accuracy", "best", "epsilon", "epsilon to server", "s", "kB down", "kB up")
    arguments.print_table(head, rows)
    print("inf: no guarantee. kB: a user and round; once: a user's records, before the first.")
    print(f"report: {result.folder / 'compare.html'}")
    for line in result.privacy_in_words:
        print(line)
