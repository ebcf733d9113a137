"""The command `dpfl tune`."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tf_dpfl.cli import arguments
from tf_dpfl.cli.events import shown_events, told_in_words

if TYPE_CHECKING:
    from tf_dpfl.cli.arguments import Commands
    from tf_dpfl.simulation.tuning import TuningResult


def add_parser(commands: Commands) -> None:
    """Adds `tune` to `commands`."""
    parser = commands.add_parser(
        "tune",
        help="search for the best settings of a plan, and say what that costs",
        description="Try settings of a plan in simulation, rank them by validation accuracy and "
        "state the privacy cost of the search. DIR receives the table (tune.json), the plan with "
        "the best setting (best.toml) and a report. A search that was stopped goes on where it "
        "stopped when it is started again.",
    )
    arguments.add_plan(parser)
    parser.add_argument(
        "--over",
        action="extend",
        nargs="+",
        required=True,
        metavar="KEY=VALUES",
        help="what to vary, several keys or several times: KEY is SECTION.KEY, or a KEY alone, "
        "looked up in local_training, privacy, server, clients in this order; VALUES is a list "
        "a,b,c or a range a..b, whose points are of equal ratio where both ends are > 0",
    )
    arguments.add_out(parser, metavar="DIR", about="the search's folder, new or to resume")
    arguments.add_data_is(
        parser,
        about="whose data the search runs on: with public or synthetic ones it costs nothing, "
        "with private ones its cost is stated",
    )
    parser.add_argument(
        "--method",
        choices=("grid", "random"),
        default="grid",
        help="try every combination (default), or draw settings, and how many, at random: on "
        "private data that is far cheaper, if the best try alone is published",
    )
    parser.add_argument(
        "--points",
        type=arguments.positive_number,
        metavar="N",
        help="points of a range in a grid; default: 5",
    )
    parser.add_argument(
        "--mean-tries",
        type=arguments.positive_real,
        metavar="M",
        help="of a random search, whose number of tries is geometric; default: 10",
    )
    parser.add_argument(
        "--folds",
        type=arguments.whole_number,
        default=0,
        metavar="K",
        help="cross-validate over users: those of each of K folds are held out of training and "
        "judge it; default: judge on the plan's test split, which is taken as public",
    )
    parser.add_argument(
        "--score-noise",
        type=arguments.positive_real,
        metavar="S",
        help="with --folds on private data: standard deviation, in users, of the noise on a "
        "fold's sum of users' accuracies; default: 5",
    )
    arguments.add_overrides(parser)
    arguments.add_seed(parser, repeats="the search")
    arguments.add_workers(parser)
    arguments.add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Searches the settings of `args.plan` into `args.out`."""
    plan = arguments.plan_of(args.plan, overrides=args.set)
    arguments.require_absent_or_folder(args.out)
    from tf_dpfl.simulation.tuning_plans import search_of

    search = search_of(
        plan,
        args.over,
        data_is=args.data,
        method=args.method,
        points=args.points,
        mean_tries=args.mean_tries,
        folds=args.folds,
        score_noise=args.score_noise,
    )
    arguments.quiet_tensorflow()
    with shown_events(as_json=args.json) as on_event:
        from tf_dpfl.simulation.tuning import run_search

        words = {"search": _search_lines, "try": _try_lines}
        with arguments.resumable(args.out):
            result = run_search(
                search,
                args.out,
                seed=args.seed,
                workers=args.workers,
                on_event=on_event if args.json else told_in_words(on_event, words),
            )
    if not args.json:
        _print_result(result)


def _search_lines(event: Mapping[str, Any]) -> list[str]:
    judged = f"{event['folds']} folds of users" if event["folds"] else "the test split"
    lines = [f"{event['method']} search, {event['tries']} tries, judged on {judged}"]
    for described in event["keys"]:
        also_in = event["also_in"].get(described.split()[0], ())
        other = f" (the plan has it in [{'], ['.join(also_in)}] too)" if also_in else ""
        lines.append(f"  {described}{other}")
    return [*lines, *event["privacy_in_words"]]


def _try_lines(event: Mapping[str, Any]) -> list[str]:
    from tf_dpfl.simulation.tuning_plans import described

    return [
        f"try {event['try']}/{event['tries']}: accuracy {event['accuracy']:.4f}, "
        f"{described(event['setting'])}, seconds {event['seconds']:g}"
    ]


def _print_result(result: TuningResult) -> None:
    """The table, best first, and where things are."""
    rows = []
    for rank, one in enumerate(result.ranking, 1):
        values = (f"{v:g}" if isinstance(v, float) else str(v) for v in one.setting.values())
        rows.append((str(rank), f"{one.accuracy:.4f}", *values, str(one.number)))
    arguments.print_table(("rank", "accuracy", *result.ranking[0].setting, "try"), rows)
    print(f"best plan: {result.folder / 'best.toml'}")
    if result.best_run:
        print(f"its run:   {result.best_run}")
    print(f"report:    {result.folder / 'report.html'}")
    for line in result.cost_in_words:
        print(line)
