"""The command `dpfl compare`: what it refuses, what it says, a comparison from end to end."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

DIGITS = Path(__file__).parents[2] / "examples" / "digits.toml"


def test_the_user_must_say_whose_data_these_are(refused, plan_file, tmp_path):
    said = refused("compare", plan_file, "--out", tmp_path / "o")
    assert "--data" in said and "required" in said


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--only", "tree", "central"), "dpfl: --only tree: the variants are central, federated,"),
        (
            ("--set", "privacy.adaptive_clipping=true", "--only", "server-tree"),
            "dpfl: --only server-tree: privacy.adaptive_clipping=true does not go with",
        ),
        (("--set", "local_training.loss=huber"), "has no accuracy"),
        (("--set", "server.rounds=0"), "server.rounds=0"),
    ],
)
def test_every_fault_is_one_line_and_leaves_nothing(refused, plan_file, tmp_path, options, said):
    out = tmp_path / "o"
    command = ("compare", plan_file, "--out", out, "--data", "public")
    assert said in refused(*command, *options) and not out.exists()


def test_out_must_not_be_a_file(refused, plan_file):
    said = refused("compare", plan_file, "--out", plan_file, "--data", "public")
    assert "is a file; --out must name a folder" in said


@pytest.mark.slow
def test_a_comparison_on_the_digits_example(tmp_path):
    out = tmp_path / "compared"
    command = [
        *(sys.executable, "-m", "tf_dpfl.cli.main", "compare", str(DIGITS), "--data", "public"),
        *("--set", "server.rounds=2", "--out", str(out)),
    ]
    with open(tmp_path / "text", "wb") as text:
        done = subprocess.run(command, stdout=text, stderr=subprocess.STDOUT, timeout=300)
    said = (tmp_path / "text").read_text()
    assert done.returncode == 0, said
    assert "variants: central, federated, device-gaussian" in said
    assert "variant 6/6: server-banded" in said and "report:" in said
    assert "central and federated: trained without privacy, which guarantees nothing" in said
    for name in ("compare.html", "compare.csv", "variants.csv", "compare.json"):
        assert (out / name).is_file()
    with open(tmp_path / "lines", "wb") as lines:
        again = subprocess.run([*command, "--json"], stdout=lines, timeout=300)
    assert again.returncode == 0
    events = [json.loads(line) for line in (tmp_path / "lines").read_text().splitlines()]
    assert [e["event"] for e in events] == ["comparison", *["variant"] * 6, "finished"]
    accuracies = {
        variant["variant"]: variant["final_accuracy"]
        for variant in json.loads((out / "compare.json").read_text())["variants"]
    }
    assert events[-1]["accuracies"] == accuracies
