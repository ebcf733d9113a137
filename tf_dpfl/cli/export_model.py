"""The command `dpfl export model`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from tf_dpfl.cli import arguments
from tf_dpfl.cli.events import shown_events

if TYPE_CHECKING:
    from tf_dpfl.cli.arguments import Commands

FORMATS = ("keras", "savedmodel", "tflite", "tflite-float16", "tflite-int8")


def add_parser(exports: Commands) -> None:
    """Adds `model` to `exports`."""
    parser = exports.add_parser(
        "model",
        help="write the trained model",
        description="Write the newest released model of a simulation run or of a server's state, "
        "with its privacy card and a signed digest beside it.",
    )
    parser.add_argument(
        "source", type=Path, metavar="RUN_OR_STATE", help="a RUN folder or a server's STATE folder"
    )
    parser.add_argument("--format", choices=FORMATS, required=True, help="what to write")
    arguments.add_out(parser, metavar="PATH", about="where to write it")
    parser.add_argument(
        "--representative-data",
        type=Path,
        metavar="FILE",
        help="for tflite-int8: an .npz whose array x sets the ranges; never a client's data",
    )
    parser.add_argument(
        "--representative-is",
        choices=("public", "released"),
        help="for tflite-int8: why that data may be used",
    )
    arguments.add_signing_key(parser)
    arguments.add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Exports the model and says where it is."""
    arguments.make_importable(args.source)  # a layer class of the user's own
    arguments.quiet_tensorflow()
    from tf_dpfl.export.model import export_model

    out = export_model(
        args.source,
        args.out,
        format=args.format,
        signing_key=arguments.signing_key_file(args.signing_key),
        representative_data=args.representative_data,
        representative_source=args.representative_is,
    )
    with shown_events(as_json=args.json) as show:
        show({"event": "model written", "format": args.format, "path": str(out)})
