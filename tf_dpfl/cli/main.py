"""The entry point of `dpfl`: its parser and what an error becomes.

TensorFlow is imported by the command that needs it, never by this file.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

import tf_dpfl
from tf_dpfl.cli import (
    compare,
    export_client,
    export_model,
    list_models,
    privacy,
    simulate,
    tune,
    worker,
    write_data,
    write_store,
)
from tf_dpfl.cli.interrupts import remember_interrupts
from tf_dpfl.protocol.errors import DpflError

EXIT_DONE = 0
EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells report it
EXIT_NOBODY_READS = 141  # 128 + SIGPIPE


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line; the subcommands' parsers are of this class too."""

    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_BAD_INPUT, f"{self.prog}: {message}; see {self.prog} --help\n")


def build_parser() -> argparse.ArgumentParser:
    """The parser of `dpfl` with all its commands."""
    parser: argparse.ArgumentParser = _Parser(
        prog="dpfl",
        description="Differentially private federated learning: simulate a plan, export it to "
        "devices, export the trained model, and state its privacy.",
    )
    parser.add_argument("--version", action="version", version=f"dpfl {tf_dpfl.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    simulate.add_parser(commands)
    tune.add_parser(commands)
    compare.add_parser(commands)
    worker.add_parser(commands)
    export = commands.add_parser(
        "export",
        help="write a task for devices, or a trained model",
        description="Write a task for devices, or a trained model.",
    )
    exports = export.add_subparsers(title="what to export", metavar="WHAT", required=True)
    export_client.add_parser(exports)
    export_model.add_parser(exports)
    privacy.add_parser(commands)
    data = commands.add_parser(
        "data",
        help="write clients' examples to files",
        description="Write clients' examples to files, for device processes or for workers.",
    )
    what = data.add_subparsers(title="what to do", metavar="DO", required=True)
    write_data.add_parser(what)
    write_store.add_parser(what)
    list_models.add_parser(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status.

    0: it did what it says. 2: bad input, or a disk or folder that cannot be
    used; one line for each fault on standard error. 130: interrupted. An
    unexpected error is a bug and keeps its traceback.
    """
    _open_closed_streams()
    arguments = build_parser().parse_args(argv)
    if argv is None:
        remember_interrupts()
    try:
        arguments.run(arguments)
        sys.stdout.flush()
    except DpflError as error:
        for fault in str(error).splitlines():
            print(f"dpfl: {fault}", file=sys.stderr)
        return EXIT_BAD_INPUT
    except KeyboardInterrupt as stop:
        print(f"dpfl: {'; '.join(['interrupted', *map(str, stop.args)])}", file=sys.stderr)
        if argv is None:  # a program of its own: everything here is cleaned up by now, and
            # TensorFlow's threads, stopped half-way, can abort Python's own way out.
            _drop_unwritten_output()
            os._exit(EXIT_INTERRUPTED)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        _drop_unwritten_output()
        return EXIT_NOBODY_READS
    except OSError as error:
        if error.strerror is None:  # raised by a library, not by the system: a bug here
            raise
        print(f"dpfl: {_system_fault(error)}", file=sys.stderr)
        _drop_unwritten_output()
        return EXIT_BAD_INPUT
    return EXIT_DONE


def _open_closed_streams() -> None:
    """Gives a program started with closed standard streams (`>&-`) some that swallow.

    Before any file is opened, which would otherwise be given their numbers.
    """
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115


def _system_fault(error: OSError) -> str:
    """What the system refused, in one line: the file, if one is named, and why."""
    names = [str(name) for name in (error.filename, error.filename2) if name is not None]
    place = " -> ".join(name if len(name) < 200 else f"{name[:200]}..." for name in names)
    return f"{place or 'writing a file or the output'}: {error.strerror}"


def _drop_unwritten_output() -> None:
    """Keeps Python from complaining again when it flushes standard output at exit."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())
