"""Accuracy under privacy on Fashion-MNIST: what a guarantee costs.

`example`: scattering features, preconditioned by generated images, a linear model,
DP-SGD with Poisson sampling that is really done, and one private look at the
features' second moment; all in the epsilon that is stated. `cnn`: a convolutional
network from pixels, all of its weights trained by DP-SGD. Settings were chosen with
`--held-out`, on the last 10,000 training images; that search is not in any epsilon.
First weights, noise and batches come from the operating system: a run is a seed of its own.

With a guarantee for every user (3,000 of 20 examples), simulated by TFF, seeds 1, 2, ...:
`user`, the best settings at each epsilon and without privacy; `mechanisms`, independent and
correlated noise, what "auto" picks, and stock TFF, all else alike; `clipping`, clip norms
that adapt from far off beside fixed ones.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent / "utility_parts"))

import cnn
import example_level
import user_level
from tables import arguments, show, write_json

SUBJECTS = {"example": example_level, "cnn": cnn}


def main() -> int:
    """Prints every run, then the means beside the targets."""
    parser = arguments(__doc__)
    parser.add_argument("what", choices=[*SUBJECTS, *user_level.TABLES])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--epsilon", type=float, nargs="+", help="by default all with a target")
    parser.add_argument("--rate", type=float, nargs="+", help="learning rates to try")
    parser.add_argument("--average", type=float, help="decay of the weights' mean")
    parser.add_argument("--held-out", action="store_true", help="judge by training images kept out")
    args = parser.parse_args()
    if args.what in user_level.TABLES:
        for name in ("epsilon", "rate", "average"):
            if getattr(args, name) is not None and (args.what, name) != ("mechanisms", "epsilon"):
                parser.error(f"--{name} is not for {args.what}")
        if not set(args.epsilon or ()) <= set(user_level.RATES):
            parser.error(f"--epsilon of mechanisms: {', '.join(map(str, user_level.RATES))}")
        return by_user(args)
    return by_example(args, parser)


def by_user(args: argparse.Namespace) -> int:
    """A guarantee for every user: rows of means over seeds, written as they come."""
    rows = []
    seeds = range(1, args.runs + 1)
    for row in user_level.rows(args.what, seeds, epsilons=args.epsilon, held_out=args.held_out):
        rows.append(row)
        write_json(rows, args.json)
    show_with_privacy(rows, by=("system",))
    return 0


def by_example(args: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    """A guarantee for every example, central training."""
    subject = SUBJECTS[args.what]
    epsilons = args.epsilon or list(subject.TARGETS)
    if not set(epsilons) <= set(subject.TARGETS):
        parser.error(f"--epsilon of {args.what}: {', '.join(map(str, subject.TARGETS))}")
    average = subject.AVERAGE if args.average is None else args.average
    split = subject.load(held_out=args.held_out)
    rows = []
    for epsilon in epsilons:
        for rate in args.rate or [subject.RATES[epsilon]]:
            for _ in range(args.runs):
                rows.append(subject.train(split, epsilon, rate=rate, average=average))
                print(f"bench: {rows[-1]}", file=sys.stderr, flush=True)
                write_json(rows, args.json)
    show([without_words(row) for row in rows])
    means = []
    for epsilon in epsilons:
        for rate in args.rate or [subject.RATES[epsilon]]:
            runs = [r for r in rows if (r["epsilon_asked"], r["rate"]) == (epsilon, rate)]
            found = [run["accuracy"] for run in runs]
            means.append(
                {
                    "epsilon": epsilon,
                    "rate": rate,
                    "mean": statistics.mean(found),
                    "least": min(found),
                    "most": max(found),
                    "target": subject.TARGETS[epsilon],
                    "published": subject.PUBLISHED.get(epsilon, "-"),
                    "met": "yes" if statistics.mean(found) >= subject.TARGETS[epsilon] else "NO",
                    "privacy": runs[0]["privacy"],
                }
            )
    print()
    show_with_privacy(means, by=("epsilon", "rate"))
    write_json([*rows, *means], args.json)
    return 0


def show_with_privacy(rows: Sequence[Mapping[str, Any]], *, by: Sequence[str]) -> None:
    """Prints the figures as a table and, below, a line of each row's privacy, named `by`."""
    show([without_words(row) for row in rows])
    print()
    for row in rows:
        print(f"{', '.join(f'{key} {row[key]}' for key in by)}: {row['privacy']}")


def without_words(row: Mapping[str, Any]) -> dict[str, Any]:
    """The columns of a table: what is told in words, or is a whole card, is not for one."""
    return {key: value for key, value in row.items() if key not in ("privacy", "card")}


if __name__ == "__main__":
    raise SystemExit(main())
