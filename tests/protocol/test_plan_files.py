"""plan.toml: what is written is read back; every bad file is one PlanError."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from plan_trees import plan_tree

from tf_dpfl.protocol.errors import PlanError
from tf_dpfl.protocol.plan import plan_from_dict
from tf_dpfl.protocol.plan_files import load_plan, plan_to_toml


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "plan.toml"
    path.write_text(plan_to_toml(plan_from_dict(plan_tree())))
    return path


def fault_of(path, **kwargs):
    with pytest.raises(PlanError) as caught:
        load_plan(path, **kwargs)
    (fault,) = caught.value.faults
    return fault


def test_a_plan_survives_a_trip_through_toml(file):
    assert load_plan(file) == plan_from_dict(plan_tree())


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.text(min_size=1),
    rate=st.floats(min_value=1e-30, max_value=1e11),
    shape=st.lists(st.integers(1, 2**53), min_size=1, max_size=4),
)
def test_every_text_number_and_list_survives_toml(tmp_path, name, rate, shape):
    plan = plan_from_dict(
        plan_tree(
            task={"model": name},
            local_training={"learning_rate": rate},
            data={"source": "csv", "path": "/d", "partition": "natural", "feature_shape": shape},
        )
    )
    path = tmp_path / "plan.toml"
    path.write_bytes(plan_to_toml(plan).encode())
    assert load_plan(path) == plan


@pytest.mark.parametrize("name", ["😀", "\x7f", 'quote " and \\', "tab\tline\nend", "\x00"])
def test_awkward_characters_survive_toml(tmp_path, name):
    plan = plan_from_dict(plan_tree(task={"model": name}))
    path = tmp_path / "plan.toml"
    path.write_bytes(plan_to_toml(plan).encode())
    assert load_plan(path) == plan


def test_relative_data_paths_start_at_the_plan(tmp_path):
    own = {"source": "folder", "partition": "natural", "path": "users", "test_path": "t.npz"}
    path = tmp_path / "plan.toml"
    path.write_text(plan_to_toml(plan_from_dict(plan_tree(data=own))))
    data = load_plan(path).data
    assert data.path == str(tmp_path / "users") and data.test_path == str(tmp_path / "t.npz")
    moved = plan_from_dict(plan_tree(data={**own, "path": "/elsewhere"}))
    path.write_text(plan_to_toml(moved))
    assert load_plan(path).data.path == "/elsewhere"


@pytest.mark.parametrize(
    "content",
    [b"[task", b"\xff\xfe", b"a = " + b"9" * 5000, b"a = " + b"[" * 100_000, b"version = 1 = 2"],
    ids=["toml", "utf8", "digits", "nesting", "twice"],
)
def test_a_file_that_is_no_plan_is_one_plan_error(file, content):
    file.write_bytes(content)
    assert str(file) in fault_of(file)


def test_a_missing_file_a_folder_and_a_nul_are_plan_errors(tmp_path):
    assert "no such plan file" in fault_of(tmp_path / "absent.toml")
    assert "cannot be read" in fault_of(tmp_path)
    assert "cannot be read" in fault_of(Path("a\0b"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_forbidden_file_is_a_plan_error(file):
    file.chmod(0)
    assert "cannot be read" in fault_of(file)


def test_an_override_replaces_one_value(file):
    plan = load_plan(
        file, overrides=["server.rounds=3", 'task.model="cnn"', "server.optimizer=adam"]
    )
    base = plan_from_dict(plan_tree())
    expected = replace(
        base,
        task=replace(base.task, model="cnn"),
        server=replace(base.server, rounds=3, optimizer="adam"),
    )
    assert plan == expected


def test_an_override_may_open_a_section(file):
    assert load_plan(file, overrides=["simulation.evaluate_every=2"]).simulation.evaluate_every == 2


def test_an_override_of_noise_replaces_the_target_and_back(file):
    plan = load_plan(file, overrides=["privacy.target_epsilon=3"])
    assert plan.privacy.target_epsilon == 3 and plan.privacy.noise_multiplier is None
    plan = load_plan(file, overrides=["privacy.target_epsilon=3", "privacy.noise_multiplier=2"])
    assert plan.privacy.noise_multiplier == 2 and plan.privacy.target_epsilon is None


@pytest.mark.parametrize("override", ["", "rounds=3", "server.rounds", "=3", ".rounds=3", "a.=3"])
def test_an_override_without_section_key_and_value_is_refused(file, override):
    assert "section.key=value" in fault_of(file, overrides=[override])


def test_an_override_is_checked_like_the_file(file):
    assert "server.rounds=0" in fault_of(file, overrides=["server.rounds=0"])
    assert "server.rounds='nan'" in fault_of(file, overrides=["server.rounds='nan'"])
    assert "server.rounds=nan" in fault_of(file, overrides=["server.rounds=nan"])
    assert "unknown key server.luck" in fault_of(file, overrides=["server.luck=1"])
    assert "not a section" in fault_of(file, overrides=["version.x=1"])


def test_an_override_cannot_smuggle_a_second_value(file):
    assert "server.rounds=" in fault_of(file, overrides=["server.rounds=3\nversion=2"])


def test_faults_of_all_overrides_and_of_the_plan_are_told_at_once(file):
    with pytest.raises(PlanError) as caught:
        load_plan(file, overrides=["nothing", "magic=1", "server.rounds=0", "task.colour=red"])
    assert len(caught.value.faults) == 4
    for part in ("'nothing'", "'magic=1'", "server.rounds=0", "task.colour"):
        assert sum(part in fault for fault in caught.value.faults) == 1, part
