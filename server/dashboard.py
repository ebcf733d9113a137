"""The dashboard: the public figures as one self-contained page, readable on a phone."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

_REFRESH_S = 10
# Rows of the table; the rest is in metrics.jsonl.
_NEWEST_ROUNDS = 50

_STYLE = """
:root{color-scheme:light dark;--line:#8884}
body{font:16px/1.5 system-ui,sans-serif;max-width:44rem;margin:0 auto;padding:1rem}
h1{font-size:1.3rem;margin:0}.muted{opacity:.7;font-size:.85rem;overflow-wrap:anywhere}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(9rem,1fr));gap:.6rem;margin:1rem 0}
.card{border:1px solid var(--line);border-radius:.6rem;padding:.6rem .8rem}
.card b{display:block;font-size:1.4rem}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{text-align:right;padding:.3rem .4rem;border-bottom:1px solid var(--line)}
svg{width:100%;height:8rem}polyline{fill:none;stroke:#2a7de1;stroke-width:2}
"""


def page(status: Mapping[str, Any]) -> str:
    """HTML of the public status; every text in it is escaped."""
    privacy = status["privacy"]
    results = status["rounds"]
    newest = results[-1] if results else None
    cards = [
        ("state", str(status["state"])),
        ("rounds released", f"{status['released_rounds']} of {status['planned_rounds']}"),
        ("accuracy", _percent(newest["accuracy"] if newest else None)),
        ("central epsilon", _epsilon(privacy["central_epsilon"])),
    ]
    if "clip_norm" in privacy:
        cards.append(("clip norm", f"{privacy['clip_norm']:.3g}"))
    boxes = "".join(
        f'<div class="card">{escape(name)}<b>{escape(value)}</b></div>' for name, value in cards
    )
    rows = "".join(
        f"<tr><td>{result['round']}</td><td>{_percent(result['accuracy'])}</td>"
        f"<td>{_epsilon(result['central_epsilon'])}</td></tr>"
        for result in reversed(results[-_NEWEST_ROUNDS:])
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f'<meta http-equiv="refresh" content="{_REFRESH_S}">'
        f"<title>tf_dpfl task</title><style>{_STYLE}</style></head><body>"
        f'<h1>Federated task</h1><div class="muted">{escape(str(status["task_id"]))}'
        f"{_reason(status['reason'])}</div>"
        f'<div class="cards">{boxes}</div>{_curve(results)}'
        f"<p>{escape(_statement(privacy))}</p>"
        "<table><thead><tr><th>round</th><th>accuracy</th><th>epsilon so far</th></tr></thead>"
        f"<tbody>{rows}</tbody></table></body></html>"
    )


def _statement(privacy: Mapping[str, Any]) -> str:
    against = (
        f"Epsilon {_epsilon(privacy['central_epsilon'])} holds against whoever sees the released "
        f"models, at delta {privacy['delta']:g}, for each {privacy['unit']}, with "
        f"{privacy['sampling']} sampling enforced by this server, prior spending included."
    )
    if privacy["noise"] == "server":
        return f"{against} Against this server itself there is no protection: it adds the noise."
    return (
        f"{against} Against this server itself, a device's own reports hold the local epsilon "
        "of its own noise, which the device accounts for."
    )


def _curve(results: list[Mapping[str, Any]]) -> str:
    """Accuracy over rounds as a line from 0 to 1."""
    scores = [(r["round"], r["accuracy"]) for r in results if r["accuracy"] is not None]
    if len(scores) < 2:
        return ""
    first, last = scores[0][0], scores[-1][0]
    points = " ".join(
        f"{300 * (number - first) / (last - first):.1f},{100 * (1 - accuracy):.1f}"
        for number, accuracy in scores
    )
    return (
        '<svg viewBox="0 -2 300 104" preserveAspectRatio="none" role="img" '
        f'aria-label="accuracy over rounds"><polyline points="{points}"/></svg>'
    )


def _reason(reason: str | None) -> str:
    return "" if reason is None else f"<br>ended: {escape(reason)}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def _epsilon(value: float | None) -> str:
    return "unbounded" if value is None else f"{value:.3g}"
