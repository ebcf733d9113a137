"""The demo's figures: recomputed accuracies, the table, the page."""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any

import numpy as np
from commands import read_json_lines

from tf_dpfl.protocol.interpreter import load_interpreter


def exported_accuracy(model: Path, test: Path) -> float:
    """Accuracy of a `.keras` or `.tflite` file on a test file, computed here."""
    with np.load(test, allow_pickle=False) as arrays:
        x, y = arrays["x"], arrays["y"]
    if model.suffix == ".keras":
        import tensorflow as tf

        logits = tf.keras.models.load_model(model, compile=False).predict(x, verbose=0)
        return float((logits.argmax(1) == y).mean())
    interpreter = load_interpreter(model.read_bytes())
    entry = interpreter.get_input_details()[0]["index"]
    exit_ = interpreter.get_output_details()[0]["index"]
    hits = 0
    for start in range(0, len(y), 500):
        batch = x[start : start + 500]
        interpreter.resize_tensor_input(entry, batch.shape)
        interpreter.allocate_tensors()
        interpreter.set_tensor(entry, batch)
        interpreter.invoke()
        hits += int((interpreter.get_tensor(exit_).argmax(1) == y[start : start + 500]).sum())
    return hits / len(y)


def rows(summary: dict[str, Any]) -> list[tuple[str, str]]:
    """The table: what, and its value."""
    delta = f"delta {summary['delta']:g}"
    return [
        ("accuracy before training", f"{summary['accuracy_before']:.1%}"),
        ("accuracy after simulation", f"{summary['accuracy_after_simulation']:.1%}"),
        ("accuracy after device rounds", f"{summary['accuracy_after_device_rounds']:.1%}"),
        ("accuracy of the exported TFLite file", f"{summary['accuracy_of_exported_tflite']:.1%}"),
        (
            "central epsilon (users, against whoever sees the models)",
            f"{summary['central_epsilon']:.2f}, {delta}",
        ),
        (
            "local epsilon of one report (against the server)",
            f"{summary['local_epsilon_per_report']:.0f}, {delta}",
        ),
        ("rounds simulated / with devices",
         f"{summary['simulated_rounds']} / {summary['device_rounds']}"),
        ("devices, reports in each round", f"{summary['devices']}, {summary['reports']}"),
        ("bytes up, per device", f"{summary['bytes_up_per_device']:,.0f}"),
        ("bytes down, per device", f"{summary['bytes_down_per_device']:,.0f}"),
        ("peak memory of a device process", f"{summary['device_process_peak_mb']:.0f} MB"),
        *((f"seconds: {name}", f"{value:.1f}") for name, value in summary["seconds"].items()),
        ("seconds in all", f"{summary['seconds_in_all']:.1f}"),
    ]  # fmt: skip


def print_table(summary: dict[str, Any]) -> None:
    """The table on standard output."""
    table = rows(summary)
    width = max(len(name) for name, _ in table)
    for name, value in table:
        print(f"{name:<{width}}  {value}")


def write_page(out: Path, summary: dict[str, Any]) -> None:
    """`report.html`: the table, the curves over all rounds and the privacy card."""
    from tf_dpfl.simulation.report import html_page, html_table, line_chart, metric_points

    simulated = read_json_lines(out / "run" / "metrics.jsonl")
    offset = len(simulated)
    devices = [
        {**r, "round": offset + number}
        for number, r in enumerate(read_json_lines(out / "state" / "metrics.jsonl"), 1)
    ]

    def chart(key: str, label: str) -> str:
        curves = {
            "simulation": metric_points(simulated, key),
            "devices": metric_points(devices, key),
        }
        return line_chart(curves, x_label="round", y_label=label)

    card = (out / "privacy.txt").read_text()
    body = "".join(
        [
            html_table(rows(summary)),
            "<h2>Accuracy on the test set</h2>",
            chart("accuracy", "accuracy"),
            "<h2>Privacy spent, against whoever sees the models</h2>",
            chart("central_epsilon", f"epsilon at delta {summary['delta']:g}"),
            f"<h2>Privacy card</h2><pre>{html.escape(card)}</pre>",
        ]
    )
    title = f"From simulation to devices and back: {summary['data']}"
    (out / "report.html").write_text(html_page(title, body))
