"""Differentially private federated learning: one plan, one client computation, three runtimes.

The names below are loaded when first used; importing this package alone
imports neither TensorFlow nor NumPy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from models.registry import build_model as build_model
    from tf_dpfl.central.model import DPModel as DPModel
    from tf_dpfl.data.federated import load_federated_data as load_federated_data
    from tf_dpfl.export.model import export_model as export_model
    from tf_dpfl.export.task import export_client as export_client
    from tf_dpfl.privacy.calibration import calibrate_plan as calibrate_plan
    from tf_dpfl.privacy.card import privacy_card as privacy_card
    from tf_dpfl.protocol.plan_files import load_plan as load_plan
    from tf_dpfl.simulation.comparing import compare as compare
    from tf_dpfl.simulation.process import build_learning_process as build_learning_process
    from tf_dpfl.simulation.runtime import tff_runtime as tff_runtime
    from tf_dpfl.simulation.shard import make_shards as make_shards
    from tf_dpfl.simulation.simulate import simulate as simulate
    from tf_dpfl.simulation.tuning import tune as tune

__version__ = "0.1.0"

_HOMES = {
    "DPModel": "tf_dpfl.central.model",
    "build_learning_process": "tf_dpfl.simulation.process",
    "build_model": "models.registry",
    "calibrate_plan": "tf_dpfl.privacy.calibration",
    "compare": "tf_dpfl.simulation.comparing",
    "export_client": "tf_dpfl.export.task",
    "export_model": "tf_dpfl.export.model",
    "load_federated_data": "tf_dpfl.data.federated",
    "load_plan": "tf_dpfl.protocol.plan_files",
    "make_shards": "tf_dpfl.simulation.shard",
    "privacy_card": "tf_dpfl.privacy.card",
    "simulate": "tf_dpfl.simulation.simulate",
    "tff_runtime": "tf_dpfl.simulation.runtime",
    "tune": "tf_dpfl.simulation.tuning",
}

__all__ = [
    "DPModel",
    "__version__",
    "build_learning_process",
    "build_model",
    "calibrate_plan",
    "compare",
    "export_client",
    "export_model",
    "load_federated_data",
    "load_plan",
    "make_shards",
    "privacy_card",
    "simulate",
    "tff_runtime",
    "tune",
]


def __getattr__(name: str) -> Any:
    """The function or class `name`, its room imported now (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
