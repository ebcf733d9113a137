"""The command `dpfl export client`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from tf_dpfl.cli import arguments
from tf_dpfl.cli.events import shown_events

if TYPE_CHECKING:
    from tf_dpfl.cli.arguments import Commands

DEFAULT_VALIDITY_DAYS = 30.0


def add_parser(exports: Commands) -> None:
    """Adds `client` to `exports`."""
    parser = exports.add_parser(
        "client",
        help="write a signed task for devices",
        description="Write a task for devices: client.tflite, the initial weights and a signed "
        "manifest. From a RUN the task goes on with the simulated model and carries along what "
        "the run has spent. Nothing is written unless the file computes what TensorFlow does.",
    )
    parser.add_argument("source", type=Path, metavar="PLAN_OR_RUN", help="a plan or a RUN folder")
    arguments.add_out(parser, metavar="TASK", about="a new folder")
    arguments.add_overrides(parser)
    arguments.add_signing_key(parser)
    parser.add_argument(
        "--valid-for-days",
        type=arguments.days,
        default=DEFAULT_VALIDITY_DAYS,
        metavar="D",
        help="devices refuse the task after D days; default: %(default)g",
    )
    arguments.add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Exports the task and says where it is and whose key devices must trust."""
    plan = arguments.plan_of(args.source, overrides=args.set)
    arguments.require_absent_or_folder(args.out)
    arguments.quiet_tensorflow()
    from tf_dpfl.export.task import export_client
    from tf_dpfl.protocol.clipping import bound_of_a_part
    from tf_dpfl.protocol.manifest import CLIENT_FILE, PUBLIC_KEY_FILE

    key = arguments.signing_key_file(args.signing_key)
    if args.source.is_dir():
        manifest = export_client(
            args.source,
            args.out,
            signing_key=key,
            overrides=args.set,
            valid_for_days=args.valid_for_days,
        )
    else:
        from tf_dpfl.data.federated import load_federated_data

        data = load_federated_data(plan)
        manifest = export_client(
            plan,
            args.out,
            signing_key=key,
            input_shape=data.input_shape,
            classes=data.outputs,
            positions=data.positions,
            valid_for_days=args.valid_for_days,
        )
    event = {
        "event": "task written",
        "folder": str(args.out),
        "task_id": manifest.task_id,
        "client_bytes": manifest.files[CLIENT_FILE].size,
        "central_epsilon": manifest.central_epsilon,
        "public_key": (args.out / PUBLIC_KEY_FILE).read_text().strip(),
    }
    privacy = manifest.plan.privacy
    if privacy.clipping != "global":
        part = {"per_layer": "clip_norm_of_each_variable", "value": "bound_of_each_entry"}
        event[part[privacy.clipping]] = bound_of_a_part(
            clip_norm=privacy.clip_norm, clipping=privacy.clipping, layout=manifest.layout
        )
    method = manifest.dp_method
    if method is not None:
        event |= {"dp_method": method.name, "dp_method_reason": method.reason}
    with shown_events(as_json=args.json) as show:
        show(event)
