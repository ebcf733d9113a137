"""What several commands share: arguments, what they are turned into, tables."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tf_dpfl.protocol.errors import PlanError, StateError

if TYPE_CHECKING:
    from tf_dpfl.protocol.plan import Plan

    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

PLAN_FILE = "plan.toml"
TASK_FOLDER = "task"
_LARGEST_PORT = 65_535
_NO_TERMINAL_WIDTH = 120
SIGNING_KEY_VARIABLE = "DPFL_SIGNING_KEY"


def add_plan(parser: argparse.ArgumentParser) -> None:
    """Adds `PLAN`, which `plan_of` reads."""
    parser.add_argument(
        "plan", type=Path, metavar="PLAN", help="a plan (TOML), or a RUN folder for its plan"
    )


def add_out(parser: argparse.ArgumentParser, *, metavar: str, about: str) -> None:
    """Adds `--out`, which must be given; `about` says what is there, or may not be there."""
    parser.add_argument("--out", type=Path, required=True, metavar=metavar, help=about)


def add_data_is(parser: argparse.ArgumentParser, *, about: str) -> None:
    """Adds `--data`, which must say whose data these are; `about` says what follows from it."""
    parser.add_argument(
        "--data", required=True, choices=("public", "synthetic", "private"), help=about
    )


def add_seed(parser: argparse.ArgumentParser, *, repeats: str) -> None:
    """Adds `--seed`, which makes `repeats` the same again."""
    parser.add_argument(
        "--seed",
        type=whole_number,
        help=f"make {repeats} repeatable, for studies only: whoever knows the seed can take the "
        "noise off; default: the operating system's randomness",
    )


def add_workers(parser: argparse.ArgumentParser) -> None:
    """Adds `--workers`."""
    parser.add_argument(
        "--workers",
        type=addresses,
        default=(),
        metavar="HOST:PORT,...",
        help="compute on these machines (dpfl worker) instead of all cores of this one; a worker "
        "that dies is survived",
    )


def add_overrides(parser: argparse.ArgumentParser) -> None:
    """Adds `--set`, which may be repeated."""
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        help="put one value over the plan's; may be repeated",
    )


def add_json(parser: argparse.ArgumentParser, *, about: str = "one JSON line per event") -> None:
    """Adds `--json`."""
    parser.add_argument("--json", action="store_true", help=about)


def add_signing_key(parser: argparse.ArgumentParser) -> None:
    """Adds `--signing-key`."""
    parser.add_argument(
        "--signing-key",
        type=Path,
        metavar="FILE",
        help="Ed25519 private key (PEM), made when missing; default: "
        f"${SIGNING_KEY_VARIABLE} or ~/.config/tf_dpfl/signing.key",
    )


def signing_key_file(path: Path | None) -> Path:
    """The file of the author's key: `path`, $DPFL_SIGNING_KEY or the home's default place."""
    named = path or os.environ.get(SIGNING_KEY_VARIABLE)
    return Path(named) if named else Path.home() / ".config" / "tf_dpfl" / "signing.key"


def is_run(path: Path) -> bool:
    """Whether `path` is a RUN folder of `dpfl simulate`."""
    return (path / PLAN_FILE).is_file()


def is_server_state(path: Path) -> bool:
    """Whether `path` is a STATE folder of `dpfl-server`."""
    return (path / TASK_FOLDER).is_dir()


def plan_of(path: Path, *, overrides: Sequence[str]) -> Plan:
    """The plan in the file `path`, or in the RUN folder `path`.

    Modules in the current folder, then in the plan's, can be imported after it:
    `task.model` may name a function there. Where an override takes a central target away
    that it does not name, that is said on standard error.

    Raises PlanError with every fault, StateError for a folder without a plan.
    """
    from tf_dpfl.protocol.plan_files import load_plan, noise_in_favour_of_local_target

    if path.is_dir():
        if not is_run(path):
            raise StateError(f"{path}: a folder without {PLAN_FILE}; name a plan or a RUN folder")
        path = path / PLAN_FILE
    make_importable(path.parent)
    plan = load_plan(path, overrides=overrides)
    replaced = noise_in_favour_of_local_target(path, overrides=overrides)
    if replaced:
        print(
            f"dpfl: warning: --set privacy.target_local_epsilon replaces the plan's {replaced}, "
            "and with it the central epsilon that this was for; to keep to one as well, add "
            "--set privacy.target_epsilon=E",
            file=sys.stderr,
        )
    return plan


def make_importable(folder: Path) -> None:
    """Lets models be imported from the current folder and from `folder`.

    Both come last, so that no file in them takes the place of an installed module.
    """
    for place in (os.getcwd(), str(folder.resolve())):
        if place not in sys.path:
            sys.path.append(place)


def quiet_tensorflow() -> None:
    """Keeps TensorFlow's and its libraries' start-up chatter off the terminal.

    Must be called before TensorFlow is imported. Variables a user has set stay.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    for name in ("absl", "tensorflow", "jax"):
        logging.getLogger(name).setLevel(logging.ERROR)


def whole_number(text: str) -> int:
    """An argument that must be an integer >= 0."""
    try:
        value = int(text)
    except ValueError:
        value = -1
    if not value >= 0:
        raise argparse.ArgumentTypeError(f"{text!r} must be an integer >= 0")
    return value


def days(text: str) -> float:
    """An argument that must be a finite number of days > 0."""
    return _positive(text, unit="days")


def epsilon(text: str) -> float:
    """An argument that must be a finite epsilon > 0."""
    return _positive(text, unit="epsilon")


def delta(text: str) -> float:
    """An argument that must be a delta in (0, 1)."""
    value = _positive(text, unit="delta")
    if not value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be a delta below 1")
    return value


def positive_real(text: str) -> float:
    """An argument that must be a finite number > 0."""
    return _positive(text)


def positive_number(text: str) -> int:
    """An argument that must be an integer >= 1."""
    value = whole_number(text)
    if not value >= 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be an integer >= 1")
    return value


def port(text: str) -> int:
    """An argument that must be a TCP port, or 0 for a free one."""
    value = whole_number(text)
    if not value <= _LARGEST_PORT:
        raise argparse.ArgumentTypeError(f"{text!r} must be a port, 0 to {_LARGEST_PORT}")
    return value


def addresses(text: str) -> tuple[str, ...]:
    """An argument that must be HOST:PORT, or several with commas between, each once."""
    found = tuple(item.strip() for item in text.split(","))
    for address in found:
        host, colon, number = address.rpartition(":")
        if not (host and colon and number.isdecimal() and 1 <= int(number) <= _LARGEST_PORT):
            raise argparse.ArgumentTypeError(
                f"{address!r} must be HOST:PORT, as in 10.0.0.7:7000,10.0.0.8:7000"
            )
    if len(set(found)) < len(found):
        raise argparse.ArgumentTypeError(f"{text!r} names a worker twice")
    return found


def _positive(text: str, *, unit: str = "") -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not 0 < value < float("inf"):
        of = f" ({unit})" if unit else ""
        raise argparse.ArgumentTypeError(f"{text!r} must be a finite number > 0{of}")
    return value


@contextlib.contextmanager
def resumable(folder: Path) -> Iterator[None]:
    """Says, when it is interrupted, that what is in `folder` goes on."""
    try:
        yield
    except KeyboardInterrupt:
        if not folder.is_dir():
            raise
        raise KeyboardInterrupt(
            f"{folder} goes on where it stopped when the same command is run again"
        ) from None


def print_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Prints a table, as wide as the terminal at most."""
    from rich.console import Console
    from rich.table import Table

    table = Table(*head)
    for row in rows:
        table.add_row(*row)
    width = None if sys.stdout.isatty() else _NO_TERMINAL_WIDTH
    Console(width=width, highlight=False, markup=False).print(table)


def require_absent_or_folder(path: Path) -> None:
    """Raises PlanError when `path` is a file, so that no work is done for nothing."""
    if os.path.lexists(path) and not path.is_dir():
        raise PlanError([f"{path}: is a file; --out must name a folder"])
