"""A report the owner no longer allows is not even charged: the ledger says what was spent."""

from __future__ import annotations

import json

import pytest
from device_bench import Bench

from tf_dpfl.protocol.errors import BudgetError


def test_a_trained_report_beyond_a_stricter_limit_is_neither_charged_nor_sent(
    bench: Bench,
) -> None:
    bench.run(until="trained")
    bench.limit(max_local_epsilon=0.5)
    with pytest.raises(BudgetError, match="max-local-epsilon"):
        bench.run()
    assert json.loads((bench.state / "ledger.json").read_text())["reports"] == []
    assert bench.server.arrived == []
