"""A run's report for people: one self-contained HTML file with its curves."""

from __future__ import annotations

import html
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from tf_dpfl.privacy.card import PrivacyCard
from tf_dpfl.protocol.files import write_atomically

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 54rem; margin: 1rem auto;
  padding: 0 1rem; color: #222; }}
svg {{ width: 100%; height: auto; }}
pre {{ white-space: pre-wrap; background: #f4f4f4; padding: .8rem; font-size: .85rem; }}
table {{ border-collapse: collapse; }}
td, th {{ padding: .2rem .8rem .2rem 0; text-align: left; border-bottom: 1px solid #ddd; }}
</style></head><body>
<h1>{title}</h1>
{body}
</body></html>
"""


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

    Logarithmic axes are for positive values over several orders of magnitude.
    """
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    for name, points in curves.items():
        if points:
            x, y = zip(*points)
            axes.plot(x, y, marker="o" if len(points) < 30 else "", markersize=3, label=name)
    if log_x:
        axes.set_xscale("log")
        use_plain_numbers(axes.xaxis)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.set_yscale("log" if log_y else "linear")
    axes.grid(alpha=0.3)
    if len(curves) > 1:
        axes.legend()
    return svg_of(figure)


def use_plain_numbers(axis: Axis) -> None:
    """Ticks of a logarithmic axis at 1, 2 and 5, written out; powers overlap on short axes."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(NullFormatter())


def svg_of(figure: Figure) -> str:
    """A figure as an SVG element."""
    text = io.StringIO()
    figure.savefig(
        text, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type"))
    )
    svg = text.getvalue()
    return svg[svg.index("<svg") :]


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
