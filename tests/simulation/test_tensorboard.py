"""TensorBoard's own reader finds in a run's event files what `metrics.jsonl` holds."""

import json

import pytest
from plans import digits_plan, small_mlp, with_server
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tf_dpfl.data.federated import load_federated_data
from tf_dpfl.simulation.simulate import simulate
from tf_dpfl.simulation.tensorboard import SCALARS, TensorBoardLog

PLAN = with_server(
    digits_plan(noise_multiplier=1.0, adaptive_clipping=True, clip_count_stddev=1.0), rounds=6
)


def curves(folder):
    """(round, value) of every point that TensorBoard shows, for each curve."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return {
        name: [(event.step, event.value) for event in events.Scalars(name)]
        for name in events.Tags()["scalars"]
    }


def test_a_resumed_run_has_each_point_of_its_metrics_once(tmp_path):
    folder, data = tmp_path / "run", load_federated_data(PLAN)

    def stop(event):
        if event["event"] == "round" and event["round"] == 5:  # one behind a checkpoint
            raise RuntimeError("planned")

    with pytest.raises(RuntimeError, match="planned"):
        simulate(PLAN, folder, model=small_mlp(), data=data, on_event=stop)
    simulate(PLAN, folder, model=small_mlp(), data=data)
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    shown = curves(folder / "tensorboard")
    assert set(shown) == set(SCALARS)
    for name, points in (
        ("accuracy", 3),
        ("loss", 3),
        ("central_epsilon", 6),
        ("clip_norm", 6),
    ):
        expected = [(r["round"], pytest.approx(r[name], rel=1e-6)) for r in records if name in r]
        assert shown[name] == expected and len(expected) == points
    speeds = dict(shown["users_per_second"])
    assert list(speeds) == [1, 2, 3, 4, 5, 6]
    for record in records:
        assert speeds[record["round"]] == pytest.approx(
            record["reports"] / record["seconds"], rel=0.01
        )


def test_what_has_no_value_is_no_point(tmp_path):
    log = TensorBoardLog(tmp_path, first_round=1)
    log.add_round({"round": 1, "accuracy": None, "central_epsilon": None, "loss": 2.0})
    log.close()
    assert curves(tmp_path) == {"loss": [(1, 2.0)]}


def test_a_line_torn_by_a_crash_costs_that_line_alone(tmp_path):
    log = TensorBoardLog(tmp_path, first_round=1)
    for number in (1, 2):
        log.add_round({"round": number, "loss": 1.0})
    log.close()
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-3])
    again = TensorBoardLog(tmp_path, first_round=2)
    again.add_round({"round": 2, "loss": 0.5})
    again.close()
    assert curves(tmp_path) == {"loss": [(1, 1.0), (2, 0.5)]}
