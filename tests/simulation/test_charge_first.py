"""A simulated round is paid for before it is computed: a crash costs, it never leaks."""

import json

import pytest
from plans import digits_plan, small_mlp, with_server

from tf_dpfl.data.federated import load_federated_data
from tf_dpfl.simulation import simulate as simulation

PLAN = with_server(digits_plan(noise_multiplier=1.0), rounds=2)


class FailingRound:
    """A learning process whose rounds over users end before they compute anything."""

    def __init__(self, process):
        self._process = process

    def __getattr__(self, name):
        return getattr(self._process, name)

    def next(self, state, shards):
        if any(len(shard["user_id"]) for shard in shards):
            raise RuntimeError("planned")
        return self._process.next(state, shards)


def test_a_round_that_fails_while_it_is_computed_was_charged(tmp_path, monkeypatch):
    build = simulation.build_learning_process
    monkeypatch.setattr(
        simulation,
        "build_learning_process",
        lambda *args, **options: FailingRound(build(*args, **options)),
    )
    folder, data = tmp_path / "run", load_federated_data(PLAN)
    for _ in range(2):  # the second time it is the same release, not a second one
        with pytest.raises(RuntimeError, match="planned"):
            simulation.simulate(PLAN, folder, model=small_mlp(), data=data)
        (charged,) = (folder / "ledger.jsonl").read_text().splitlines()
        assert json.loads(charged)["round"] == 1
        assert (folder / "metrics.jsonl").read_text() == ""
        assert not (folder / "model.keras").exists()
