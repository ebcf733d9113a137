"""The command `dpfl privacy`."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tf_dpfl.cli import arguments
from tf_dpfl.cli.arguments import TASK_FOLDER
from tf_dpfl.protocol.errors import PlanError, StateError, TaskError

if TYPE_CHECKING:
    from tf_dpfl.cli.arguments import Commands
    from tf_dpfl.privacy.card import PrivacyCard
    from tf_dpfl.protocol.plan import Plan

CARD_FILE = "privacy.json"


def add_parser(commands: Commands) -> None:
    """Adds `privacy` to `commands`."""
    parser = commands.add_parser(
        "privacy",
        help="print the privacy card",
        description="Print the privacy card: of a plan, what all its rounds would cost, before "
        "anything is run; of a RUN or a server's STATE folder, what was spent so far.",
    )
    parser.add_argument(
        "source",
        type=Path,
        metavar="PLAN_OR_RUN_OR_STATE",
        help="a plan, a RUN folder or a server's STATE folder",
    )
    arguments.add_json(parser, about="the card as one JSON object")
    parser.add_argument(
        "--epsilon",
        type=arguments.epsilon,
        metavar="E",
        help="for a plan: solve for what gives a central epsilon of E (see --solve); beside a "
        "local target of the plan, what needs more noise decides",
    )
    parser.add_argument(
        "--delta",
        type=arguments.delta,
        metavar="D",
        help="for a plan: take this delta instead of the plan's",
    )
    parser.add_argument(
        "--solve",
        choices=["noise", "rounds", "cohort"],
        default="noise",
        help="with --epsilon: find the least noise (the default), or, with the plan's noise, the "
        "most rounds or the largest cohort",
    )
    arguments.add_overrides(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Prints the card."""
    card = _card_of_folder(args) if args.source.is_dir() else _card_of_plan(args)
    print(json.dumps(card.to_json(), allow_nan=False) if args.json else card.to_text())


def _card_of_plan(args: argparse.Namespace) -> PrivacyCard:
    """The card before the first round; the noise is solved for when it is not given."""
    overrides = list(args.set)
    if args.delta is not None:
        overrides.append(f"privacy.delta={args.delta!r}")
    if args.solve != "noise" and args.epsilon is None:
        raise PlanError([f"--solve {args.solve} needs --epsilon E, the epsilon to be kept to"])
    if args.solve == "noise" and args.epsilon is not None:
        overrides.append(f"privacy.target_epsilon={args.epsilon!r}")
    asked = arguments.plan_of(args.source, overrides=overrides)
    from tf_dpfl.privacy.calibration import SOLVABLE, calibrate_plan, solve_plan
    from tf_dpfl.privacy.card import privacy_card

    plan = calibrate_plan(asked)
    _tell_what_decided(asked, plan)
    if args.solve != "noise":
        plan = solve_plan(plan, target_epsilon=args.epsilon, what=args.solve)
        section, key = SOLVABLE[args.solve]
        found = getattr(getattr(plan, section), key)
        print(
            f"dpfl: the most that epsilon {args.epsilon:g} allows: {section}.{key}={found}",
            file=sys.stderr,
        )
    return privacy_card(plan, rounds_done=0, sampling_enforced_by="nobody yet: nothing was run")


def _tell_what_decided(asked: Plan, calibrated: Plan) -> None:
    """Says which of two targets the noise is from, and what the other one alone would need."""
    central, local = asked.privacy.target_epsilon, asked.privacy.target_local_epsilon
    if central is None or local is None:
        return
    from tf_dpfl.privacy.calibration import noise_of_central_target

    noise, for_models = calibrated.privacy.noise_multiplier, noise_of_central_target(asked, central)
    targets = (f"target_local_epsilon={local:g}", f"target_epsilon={central:g}")
    decides, other = targets if noise != for_models else reversed(targets)
    print(
        f"dpfl: privacy.{decides} decides the noise, multiplier {noise:.4g}, which keeps to "
        f"{other} too" + (f" ({for_models:.4g} would)" if noise != for_models else ""),
        file=sys.stderr,
    )


def _card_of_folder(args: argparse.Namespace) -> PrivacyCard:
    """What a run or a server has spent, as it noted it, counted again."""
    folder: Path = args.source
    if args.set or args.epsilon is not None or args.delta is not None:
        raise PlanError(
            [
                f"{folder}: --set, --epsilon and --delta are for a plan; what was spent cannot be "
                "changed"
            ]
        )
    if arguments.is_run(folder):
        plan = arguments.plan_of(folder, overrides=())
    elif arguments.is_server_state(folder):
        from tf_dpfl.protocol.manifest import MANIFEST_FILE, parse_manifest

        plan = parse_manifest(_read(folder / TASK_FOLDER / MANIFEST_FILE)).plan
    else:
        raise StateError(f"{folder}: neither a RUN of dpfl simulate nor a STATE of dpfl-server")
    from tf_dpfl.privacy.card import CARD_VERSION, privacy_card
    from tf_dpfl.privacy.mechanism import mechanism_from_json

    file = folder / CARD_FILE
    try:
        noted = json.loads(_read(file))
        if noted["version"] != CARD_VERSION:
            raise StateError(f"{file}: version {noted['version']!r} is not {CARD_VERSION}")
        return privacy_card(
            plan,
            rounds_done=noted["rounds_done"],
            prior=[mechanism_from_json(entry) for entry in noted["prior"]],
            sampling_enforced_by=noted["central"]["sampling_enforced_by"],
            noise_is_reproducible=noted["noise_is_reproducible"],
        )
    # RecursionError and AttributeError: nested too deeply, of other types.
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, TaskError) as error:
        raise StateError(f"{file}: not a privacy card: {error!r:.200}") from None


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise StateError(f"{path}: is not there; nothing was released yet") from None
    except OSError as error:
        raise StateError(f"{path}: cannot be read: {error}") from None
