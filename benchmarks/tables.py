"""One table from one run: printed for people, written as JSON for programs."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def arguments(description: str) -> argparse.ArgumentParser:
    """A parser with the `--json FILE` every benchmark has."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows there")
    return parser


def show(rows: Sequence[Mapping[str, Any]]) -> None:
    """Prints `rows` (same keys each; the first row names them)."""
    keys = list(rows[0])
    table = [keys] + [[_text(row[key]) for key in keys] for row in rows]
    widths = [max(len(line[i]) for line in table) for i in range(len(keys))]
    for line in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip())


def write_json(rows: Sequence[Mapping[str, Any]], file: Path | None) -> None:
    """Writes `rows` to `file`, where one was asked for; a figure not measured is null."""
    if file:
        plain = [{k: None if v != v else v for k, v in row.items()} for row in rows]
        file.write_text(json.dumps(plain, indent=1, allow_nan=False) + "\n")


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
