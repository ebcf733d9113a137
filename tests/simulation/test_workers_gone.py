"""Workers that are missing, all gone, or back again: what is said, and how a run goes on."""

import contextlib
import json
import queue
import time

import numpy as np
import pytest
from plans import small_mlp
from worker_rounds import Workers, plan_of, weights_after

from tf_dpfl.data.federated import load_federated_data
from tf_dpfl.protocol.errors import StateError
from tf_dpfl.simulation import runtime as runtime_module
from tf_dpfl.simulation import workers as workers_module
from tf_dpfl.simulation.runtime import tff_runtime
from tf_dpfl.simulation.simulate import simulate
from tf_dpfl.simulation.worker_process import start_worker


@pytest.fixture(scope="module")
def data():
    return load_federated_data(plan_of())


@pytest.fixture
def two():
    with contextlib.closing(Workers(2)) as workers:
        yield workers


def test_a_missing_worker_is_named_at_the_start(data, two, monkeypatch):
    monkeypatch.setattr(runtime_module, "_FIND_TIMEOUT_S", 1.0)
    two.kill(1)
    alone, _ = weights_after(data, plan_of())
    spread, notices = weights_after(data, plan_of(), workers=two.addresses)
    assert notices == [{"event": "worker lost", "worker": two.addresses[1]}]
    np.testing.assert_allclose(spread, alone, rtol=0, atol=1e-5)


def test_no_worker_at_the_start_is_an_error_that_names_all(two, monkeypatch):
    monkeypatch.setattr(runtime_module, "_FIND_TIMEOUT_S", 0.5)
    two.kill(0)
    two.kill(1)
    with pytest.raises(StateError) as error, tff_runtime(workers=two.addresses):
        pass
    assert all(address in str(error.value) for address in two.addresses)
    assert "\n" not in str(error.value)


def test_a_run_whose_workers_are_all_gone_goes_on_later(data, tmp_path, two, monkeypatch):
    """One clear line; each round charged once; the result of a run that never stopped."""
    monkeypatch.setattr(runtime_module, "_PATIENCE_S", 1.0)
    plan, model = plan_of(), small_mlp()
    whole = simulate(plan, tmp_path / "whole", model=model, data=data, seed=7)

    def kill_all(event):
        if event["event"] == "round" and event["round"] == 2:
            two.kill(0)
            two.kill(1)

    folder = tmp_path / "run"
    options = {"model": model, "data": data, "seed": 7, "workers": two.addresses}
    with pytest.raises(StateError, match="no worker is left") as error:
        simulate(plan, folder, on_event=kill_all, **options)
    assert "\n" not in str(error.value) and all(a in str(error.value) for a in two.addresses)
    two.start(0)  # the other one stays away
    events = []
    resumed = simulate(plan, folder, on_event=events.append, **options)
    assert [e["worker"] for e in events if e["event"] == "worker lost"] == [two.addresses[1]]
    charged = (folder / "ledger.jsonl").read_text()
    assert [json.loads(line)["round"] for line in charged.splitlines()] == [1, 2, 3]
    for new, old in zip(resumed.model.get_weights(), whole.model.get_weights()):
        np.testing.assert_allclose(new, old, rtol=0, atol=1e-5)


def test_the_local_worker_is_started_again_when_it_dies_but_not_for_ever(data, monkeypatch):
    processes = []

    def start(*args, **options):
        processes.append(start_worker(*args, **options))
        return processes[-1]

    monkeypatch.setattr(workers_module, "start_worker", start)
    undisturbed, _ = weights_after(data, plan_of())
    processes.clear()
    killed, _ = weights_after(data, plan_of(), between=lambda number: processes[-1].process.kill())
    np.testing.assert_allclose(killed, undisturbed, rtol=0, atol=1e-6)
    assert len(processes) == 4
    with pytest.raises(StateError, match="status -9 for the 4th time"):
        weights_after(
            data, plan_of(), rounds=5, between=lambda number: processes[-1].process.kill()
        )


def test_work_goes_back_to_a_worker_that_is_found_again():
    class Fake:
        def __init__(self, name):
            self.name, self.ready = name, True

        def is_ready(self):
            return self.ready

    from tf_dpfl.simulation.spread import _Crew

    a, b, c = (Fake(name) for name in "abc")
    crew = _Crew([a, b, c], patience_s=0.0, notices=queue.SimpleQueue())
    assert [crew.worker_for(part) for part in range(3)] == [a, b, c]
    b.ready = False
    assert crew.worker_for(1) in (a, c)
    a.ready = False
    assert crew.worker_for(0) is c and crew.worker_for(1) is c
    assert crew.is_at_home(1)  # its own worker is still away
    b.ready = True
    assert not crew.is_at_home(1)
    assert crew.worker_for(1) is b
    a.ready = b.ready = c.ready = False
    began = time.monotonic()
    with pytest.raises(StateError, match="a, b, c"):
        crew.worker_for(2)
    assert time.monotonic() - began < 30
