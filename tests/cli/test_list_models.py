"""`dpfl models` names what a plan can name."""

from __future__ import annotations

import json

from models.registry import registered_models
from tf_dpfl.cli.main import main


def test_every_registered_model_is_listed(capsys):
    assert main(["models", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == registered_models()
    assert main(["models"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(registered_models())
