"""The report of a search: which picture there is, and what stands in it."""

import pytest
from plans import digits_plan

from tf_dpfl.simulation.tuning_keys import TriedSetting, grid
from tf_dpfl.simulation.tuning_plans import search_of
from tf_dpfl.simulation.tuning_report import best_at, charts, ranking_table, write_search_report

PLAN = digits_plan(noise_multiplier=1.0)


def searched(*over, points=3):
    """A search and a made-up ranking of its whole grid."""
    search = search_of(PLAN, over, data_is="public", points=points)
    settings = grid(search.keys)
    tried = [TriedSetting(n, s, n / len(settings)) for n, s in enumerate(settings, 1)]
    return search, sorted(tried, key=lambda one: -one.accuracy)


@pytest.mark.parametrize(
    ("over", "pictures"),
    [
        (["optimizer=sgd,adam"], 0),
        (["clip_norm=0.1..3"], 1),
        (["clip_norm=0.1..3", "optimizer=sgd,adam"], 1),
        (["clip_norm=0.1..3", "learning_rate=0.1,1"], 1),
        (["clip_norm=0.1..3", "learning_rate=0.1,1", "rounds=1,2"], 3),
        (["clip_norm=0.1..3", "learning_rate=0.1"], 1),  # one value makes no axis
    ],
)
def test_numeric_keys_get_a_curve_or_maps(over, pictures):
    assert "".join(charts(*searched(*over))).count("<svg") == pictures


def test_a_heat_map_shows_every_cell_once():
    _, ranking = searched("clip_norm=0.1,0.3", "learning_rate=0.1,1")
    points = best_at(ranking, ["privacy.clip_norm", "local_training.learning_rate"])
    assert points == {(0.1, 0.1): 0.25, (0.1, 1.0): 0.5, (0.3, 0.1): 0.75, (0.3, 1.0): 1.0}


def test_other_keys_leave_the_best_of_a_cell():
    _, ranking = searched("clip_norm=0.1,0.3", "optimizer=sgd,adam")
    assert best_at(ranking, ["privacy.clip_norm"]) == {(0.1,): 0.5, (0.3,): 1.0}


def test_the_table_lists_every_try_best_first():
    search, ranking = searched("clip_norm=0.1,0.3", "optimizer=sgd,adam")
    table = ranking_table(search, ranking)
    assert table.count("<tr>") == 1 + 4
    assert table.index("1.0000") < table.index("0.7500") < table.index("0.2500")
    assert "overflow-x" in table  # a phone is narrower than some keys


def test_names_of_a_users_own_are_escaped(tmp_path):
    search, ranking = searched("task.model=mlp,a&b:<i>")
    write_search_report(tmp_path / "r.html", search, ranking, ["1 < 2"], mode=0o600)
    page = (tmp_path / "r.html").read_text()
    assert "a&amp;b:&lt;i&gt;" in page and "<i>" not in page and "1 &lt; 2" in page
    assert (tmp_path / "r.html").stat().st_mode & 0o077 == 0
