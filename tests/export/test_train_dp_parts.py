"""`train_dp` of a batch that is taken in parts: verified like any other."""

from __future__ import annotations

from typing import Any

import pytest
import tensorflow as tf
from export_bench import plan_of
from layer_models import L

from tf_dpfl.client_work.per_example import parts
from tf_dpfl.export.client import build_client_tflite, dp_method_of
from tf_dpfl.export.tuning.file import subgraphs_of, unpack
from tf_dpfl.export.verify import verify_client_tflite
from tf_dpfl.protocol.errors import ExportError

PLAN = plan_of(batch_size=6, unit="example", delta=1e-4)


@pytest.fixture(autouse=True)
def little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "_MOST_BYTES", 2000)


def model() -> tf.keras.Model:
    layers = [L.Conv2D(4, 3, activation="tanh"), L.Dropout(0.25), L.GroupNormalization(2)]
    return tf.keras.Sequential([L.InputLayer((8, 7, 2)), *layers, L.Flatten(), L.Dense(3)])


def test_the_file_is_verified_and_its_method_says_so() -> None:
    made = model()
    method = dp_method_of(made, PLAN)
    assert method is not None
    assert method.name == "one_pass"
    assert "2 examples at a time" in method.reason
    content = build_client_tflite(made, PLAN, dp_method=method.name)
    verify_client_tflite(content, made, PLAN)
    file = unpack(content)
    graphs = subgraphs_of(file)
    (step,) = (d.subgraphIndex for d in file.signatureDefs if d.signatureKey == b"train_dp")
    assert "WHILE" in [graphs[step].name(op) for op in graphs[step].subgraph.operators]


def test_a_part_that_is_left_out_stops_the_export(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = parts.tf.while_loop

    def without_the_first(condition: Any, body: Any, start: Any, **options: Any) -> Any:
        return whole(condition, body, (start[0] + 1, *start[1:]), **options)

    made = model()
    with monkeypatch.context() as patch:
        patch.setattr(parts.tf, "while_loop", without_the_first)
        content = build_client_tflite(made, PLAN, dp_method="one_pass")
    with pytest.raises(ExportError, match="per-example clipping against the loop"):
        verify_client_tflite(content, made, PLAN)
