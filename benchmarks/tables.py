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


def show(rows: Sequence[Mapping[str, Any]], *, json_file: Path | None) -> None:
    """Prints `rows` (same keys each; the first row names them) and writes them."""
    keys = list(rows[0])
    table = [keys] + [[_text(row[key]) for key in keys] for row in rows]
    widths = [max(len(line[i]) for line in table) for i in range(len(keys))]
    for line in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip())
    if json_file:
        json_file.write_text(json.dumps(list(rows), indent=1) + "\n")


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
