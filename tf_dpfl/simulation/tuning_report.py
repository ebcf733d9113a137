"""A search's report for people: the table, pictures of it, and the cost in words."""

from __future__ import annotations

import html
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from tf_dpfl.protocol.files import write_atomically
from tf_dpfl.simulation.report import (
    NARROW,
    html_page,
    line_chart,
    narrow,
    svg_of,
    use_plain_numbers,
    wide_table,
)
from tf_dpfl.simulation.tuning_keys import SearchedKey, TriedSetting
from tf_dpfl.simulation.tuning_plans import GRID, Search

_MOST_CURVES = 6
_MOST_MAPPED_KEYS = 3
_MOST_WRITTEN_CELLS = 64
_WIDE_COLUMNS = 5
_MOST_LABEL_LETTERS = 24
_LOG_FROM_RATIO = 8
_DARK = "#111111"  # on a bright cell, also where the page's text is bright

Points = Mapping[tuple[Any, ...], float]


def write_search_report(
    path: Path, search: Search, ranking: Sequence[TriedSetting], words: Sequence[str], *, mode: int
) -> None:
    """Writes `report.html`, self-contained; `ranking` has the best try first."""
    best = ranking[0]
    body = [
        f"<p>{len(ranking)} tries, judged {_judged(search)}. "
        f"The best reached <b>{best.accuracy:.4f}</b> with "
        f"{html.escape(', '.join(f'{n} = {_shown(v)}' for n, v in best.setting.items()))}; "
        "<code>best.toml</code> is the plan with it.</p>",
        "<h2>Privacy cost of the search</h2>",
        *(f"<p>{html.escape(line)}</p>" for line in words),
        *charts(search, ranking),
        "<h2>All tries</h2>",
        ranking_table(search, ranking),
    ]
    write_atomically(path, html_page("Search for settings", "".join(body)).encode(), mode=mode)


def charts(search: Search, ranking: Sequence[TriedSetting]) -> list[str]:
    """Pictures of the accuracy: over one numeric key a curve, over two a heat map.

    With three, a map of each pair; of more keys, those of the first three.
    """
    keys = [key for key in search.keys if key.is_numeric and _differs(key, ranking)]
    if not keys:
        return []
    if len(keys) == 1:
        return ["<h2>Accuracy</h2>", narrow(_curve(keys[0], ranking))]
    pictures = ["<h2>Accuracy</h2>"]
    if len(search.keys) > 2:
        pictures.append("<p>Each point shows the best over all other keys.</p>")
    for across, up in itertools.combinations(keys[:_MOST_MAPPED_KEYS], 2):
        points = best_at(ranking, [across.name, up.name])
        figure = _heat_map if search.method == GRID else _scattered
        pictures.append(narrow(figure(across, up, points)))
    return pictures


def ranking_table(search: Search, ranking: Sequence[TriedSetting]) -> str:
    """The table as HTML; wide ones can be moved sideways."""
    names = [key.name for key in search.keys]
    rows = []
    for rank, one in enumerate(ranking, 1):
        values = [_shown(one.setting[name]) for name in names]
        rows.append([str(rank), f"{one.accuracy:.4f}", *values, str(one.number)])
    return wide_table(("rank", "accuracy", *names, "try"), rows)


def best_at(ranking: Sequence[TriedSetting], names: Sequence[str]) -> dict[tuple[Any, ...], float]:
    """The best accuracy at each combination of values of these keys."""
    points: dict[tuple[Any, ...], float] = {}
    for one in ranking:  # the best comes first
        points.setdefault(tuple(one.setting[name] for name in names), one.accuracy)
    return points


def _curve(key: SearchedKey, ranking: Sequence[TriedSetting]) -> str:
    """Accuracy over one numeric key, a curve for each value of the others while they are few."""
    by_rest: dict[str, list[TriedSetting]] = {}
    for one in ranking:
        rest = ", ".join(_shown(v) for name, v in one.setting.items() if name != key.name)
        by_rest.setdefault(rest, []).append(one)
    if len(by_rest) > _MOST_CURVES:
        by_rest = {"": list(ranking)}
    curves = {
        rest: sorted((at[0], accuracy) for at, accuracy in best_at(tried, [key.name]).items())
        for rest, tried in by_rest.items()
    }
    return line_chart(
        curves,
        x_label=key.name,
        y_label="validation accuracy",
        log_x=_spans([one.setting[key.name] for one in ranking]),
        size=NARROW,
    )


def _heat_map(across: SearchedKey, up: SearchedKey, points: Points) -> str:
    """Cells of equal size, one for each pair of values, the accuracy written into them."""
    columns, rows = sorted(across.values), sorted(up.values)
    cells = [[points[x, y] for x in columns] for y in rows]
    figure = Figure(figsize=NARROW, layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(cells, origin="lower", aspect="auto", cmap="viridis")
    labels = [_shown(v) for v in columns]
    turned = 45 if sum(map(len, labels)) > _MOST_LABEL_LETTERS else 0
    axes.set_xticks(range(len(columns)), labels, rotation=turned)
    axes.set_yticks(range(len(rows)), [_shown(v) for v in rows])
    axes.set_xlabel(across.name)
    axes.set_ylabel(up.name)
    figure.colorbar(image, label="validation accuracy")
    if len(columns) * len(rows) <= _MOST_WRITTEN_CELLS:
        middle = (min(points.values()) + max(points.values())) / 2
        for row, line in enumerate(cells):
            for column, value in enumerate(line):
                color = _DARK if value > middle else "white"
                size = 10 if len(columns) <= _WIDE_COLUMNS else 7
                text = axes.text(column, row, f"{value:.3f}", color=color, fontsize=size)
                text.set(ha="center", va="center")
    return svg_of(figure, label=f"accuracy over {across.name} and {up.name}")


def _scattered(across: SearchedKey, up: SearchedKey, points: Points) -> str:
    """One dot for each drawn pair of values, its colour the accuracy, the best one ringed."""
    x, y = zip(*points)
    figure = Figure(figsize=NARROW, layout="constrained")
    axes = figure.subplots()
    dots = axes.scatter(x, y, c=list(points.values()), cmap="viridis", s=70, edgecolors="grey")
    best = max(points, key=lambda at: points[at])
    axes.scatter(best[0], best[1], s=260, facecolors="none", edgecolors="red", linewidths=1.5)
    if _spans(x):
        axes.set_xscale("log")
        use_plain_numbers(axes.xaxis)
    if _spans(y):
        axes.set_yscale("log")
        use_plain_numbers(axes.yaxis)
    axes.set_xlabel(across.name)
    axes.set_ylabel(up.name)
    axes.grid(alpha=0.3)
    figure.colorbar(dots, label="validation accuracy")
    return svg_of(figure, label=f"accuracy over {across.name} and {up.name}")


def _differs(key: SearchedKey, ranking: Sequence[TriedSetting]) -> bool:
    return len({one.setting[key.name] for one in ranking}) > 1


def _spans(values: Sequence[float]) -> bool:
    """Whether they are so far apart that a logarithmic axis shows them better."""
    return min(values) > 0 and max(values) >= _LOG_FROM_RATIO * min(values)


def _judged(search: Search) -> str:
    if search.folds:
        return f"by {search.folds}-fold cross-validation over users"
    return "on the plan's test split"


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
