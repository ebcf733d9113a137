"""A run's report for people: one self-contained HTML file with its curves."""

from __future__ import annotations

import html
import io
import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

from tf_dpfl.privacy.card import PrivacyCard
from tf_dpfl.protocol.files import write_atomically

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; --text: #222; --paper: #fff; --box: #f4f4f4; --line: #ddd; }}
@media (prefers-color-scheme: dark) {{
  :root {{ --text: #ddd; --paper: #181818; --box: #262626; --line: #444; }}
}}
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 54rem; margin: 1rem auto;
  padding: 0 1rem; color: var(--text); background: var(--paper); overflow-wrap: break-word; }}
svg {{ width: 100%; height: auto; fill: currentColor; }}
pre {{ white-space: pre-wrap; background: var(--box); padding: .8rem; font-size: .85rem; }}
table {{ border-collapse: collapse; }}
td, th {{ padding: .2rem .8rem .2rem 0; text-align: left; border-bottom: 1px solid var(--line); }}
.wide td {{ white-space: nowrap; }}
</style></head><body>
<h1>{title}</h1>
{body}
</body></html>
"""

# A chart that is wide enough on a desk, and whose letters can be read on a phone.
NARROW = (5, 4)
_NARROW_FIGURE = '<div style="max-width: 34rem">{svg}</div>'

# Told apart by shape and dashes where there is no colour; colours of Okabe & Ito, which
# colour-blind people tell apart.
_STYLES = (
    ("#0072B2", "-", "o"),
    ("#D55E00", "--", "s"),
    ("#009E73", "-.", "^"),
    ("#CC79A7", ":", "D"),
    ("#E69F00", (0, (8, 2)), "v"),
    ("#56B4E9", (0, (3, 1, 1, 1, 1, 1)), "P"),
)
_MOST_MARKERS = 12
_MOST_LETTERS_OF_A_ROW = 24


def line_chart(
    curves: Mapping[str, Sequence[tuple[float, float]]],
    *,
    x_label: str,
    y_label: str,
    log_x: bool = False,
    log_y: bool = False,
    size: tuple[float, float] = (7, 3.6),
) -> str:
    """An SVG element of named curves, each a sequence of (x, y) points; `size` in inches.

    A curve without points keeps its place: the others look as they do beside it. Logarithmic
    axes are for positive values over several orders of magnitude.
    """
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    for (name, points), (color, dashes, marker) in zip(curves.items(), itertools.cycle(_STYLES)):
        if points:
            x, y = zip(*points)
            every = -(-len(points) // _MOST_MARKERS)
            axes.plot(
                *(x, y),
                color=color,
                linestyle=dashes,
                marker=marker,
                markersize=4,
                markevery=every,
                label=name,
            )
    if all(isinstance(x, int) for points in curves.values() for x, _ in points):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if log_x:
        axes.set_xscale("log")
        use_plain_numbers(axes.xaxis)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.set_yscale("log" if log_y else "linear")
    axes.grid(alpha=0.3)
    if len(curves) > 1:
        columns = 2 if sum(map(len, curves)) > _MOST_LETTERS_OF_A_ROW else len(curves)
        figure.legend(loc="outside lower center", ncols=columns, frameon=False, handlelength=4)
    return svg_of(figure, label=f"{y_label} over {x_label}")


def use_plain_numbers(axis: Axis) -> None:
    """Ticks of a logarithmic axis at 1, 2 and 5, written out; powers overlap on short axes."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(NullFormatter())


def svg_of(figure: Figure, *, label: str) -> str:
    """A figure as an SVG element, which `label` names for those who do not see it.

    What is black takes the text's colour, what is behind it shows through.
    """
    for axes in figure.axes:
        axes.set_facecolor("none")
    text = io.StringIO()
    figure.savefig(
        text,
        format="svg",
        facecolor="none",
        metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")),
    )
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :].replace("#000000", "currentColor")
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg)  # for documents that are not HTML
    return svg.replace("<svg", f'<svg role="img" aria-label="{html.escape(label)}"', 1)


def narrow(svg: str) -> str:
    """A chart of size `NARROW`, no wider than it is good for."""
    return _NARROW_FIGURE.format(svg=svg)


def wide_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table as HTML that can be moved sideways by itself; texts are escaped."""
    cells = "".join(f"<th>{html.escape(name)}</th>" for name in head)
    lines = "".join(
        f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in rows
    )
    return (
        f'<div class="wide" style="overflow-x: auto"><table><tr>{cells}</tr>{lines}</table></div>'
    )


def html_table(rows: Sequence[tuple[str, str]]) -> str:
    """A two-column table; texts are escaped."""
    cells = "".join(
        f"<tr><th>{html.escape(name)}</th><td>{html.escape(value)}</td></tr>"
        for name, value in rows
    )
    return f"<table>{cells}</table>"


def html_page(title: str, body: str) -> str:
    """A self-contained page readable on a phone; `body` is HTML."""
    return _PAGE.format(title=html.escape(title), body=body)


def metric_points(metrics: Sequence[Mapping[str, Any]], key: str) -> list[tuple[float, float]]:
    """(round, value) for every record that has a value for `key`."""
    return [(m["round"], m[key]) for m in metrics if m.get(key) is not None]


def write_report(path: Path, metrics: Sequence[Mapping[str, Any]], card: PrivacyCard) -> None:
    """Writes `report.html`: accuracy, epsilon and adaptive clip norm over rounds, the card."""
    accuracy = {"accuracy": metric_points(metrics, "accuracy")}
    epsilon = {"central epsilon": metric_points(metrics, "central_epsilon")}
    clip_norms = {"clip norm": metric_points(metrics, "clip_norm")}
    adapted = [
        "<h2>Clip norm</h2>",
        line_chart(clip_norms, x_label="round", y_label="clip norm", log_y=True),
    ]
    body = "".join(
        [
            "<h2>Accuracy on held-out examples</h2>",
            line_chart(accuracy, x_label="round", y_label="accuracy"),
            "<h2>Privacy spent, against whoever sees the models</h2>",
            line_chart(epsilon, x_label="round", y_label="epsilon (delta as on the card)"),
            *(adapted if card.plan.privacy.adaptive_clipping else []),
            "<h2>Privacy card</h2>",
            f"<pre>{html.escape(card.to_text())}</pre>",
        ]
    )
    write_atomically(path, html_page("Simulation report", body).encode())
