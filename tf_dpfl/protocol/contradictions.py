"""Faults between the values of a plan: each one allowed, but not together.

A value that could not be read, or is missing, takes along only the checks that
ask for it: the contradictions of all others are found at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

from tf_dpfl.protocol.adaptive_clipping import clip_count_stddev_of, fault_of_noise
from tf_dpfl.protocol.local_target import faults_of_local_target
from tf_dpfl.protocol.losses import LOSSES, SPARSE_LOSS
from tf_dpfl.protocol.step_scale import faults_of_sensitivity
from tf_dpfl.protocol.tuning_section import faults_of_tuning

# Some seconds of accounting; real trainings have hundreds or thousands of rounds.
MOST_ROUNDS_OF_A_TREE = 16_384

_OWN_SOURCES = 'source "folder", "csv" or "store"'


def contradictions(sections: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Every fault between values of `sections`, which hold what could be read."""
    plan = _Readable({name: _Readable(values) for name, values in sections.items()})
    faults: list[str] = []
    for check in _CHECKS:
        with suppress(_Unread):
            faults += check(plan)
    return faults


class _Unread(Exception):
    """A check asked for a value that could not be read."""


class _Readable:
    """Values by their names; asking for one that is not there raises `_Unread`."""

    def __init__(self, values: Mapping[str, Any]):
        self._values = values

    def __getattr__(self, name: str) -> Any:
        if name not in self._values:
            raise _Unread(name)
        return self._values[name]


def _cohort(plan: _Readable) -> Iterable[str]:
    clients = plan.clients
    if clients.clients_per_round > clients.population:
        return [
            f"clients.clients_per_round={clients.clients_per_round} must be at most "
            f"clients.population={clients.population}"
        ]
    return []


def _smallest_cohort(plan: _Readable) -> Iterable[str]:
    smallest, expected = plan.privacy.smallest_cohort, plan.clients.clients_per_round
    if smallest > expected:
        return [
            f"privacy.smallest_cohort={smallest} must be at most "
            f"clients.clients_per_round={expected}: no round could close"
        ]
    return []


def _delta(plan: _Readable) -> Iterable[str]:
    """Delta must be below one over the number of users, or examples, it protects."""
    delta, number = plan.privacy.delta, plan.clients.population
    name, whose = "clients.population", "somebody's data"
    if plan.privacy.unit == "example":
        number *= plan.clients.examples_per_client
        name, whose = f"({name} * clients.examples_per_client)", "an example"
    if delta * number < 1:
        return []
    return [
        f"privacy.delta={delta:g} must be below 1/{name}={1 / number:g}: a larger one "
        f"allows publishing {whose} whole"
    ]


def _noise(plan: _Readable) -> Iterable[str]:
    privacy = plan.privacy
    given = (privacy.noise_multiplier, privacy.target_epsilon).count(None)
    if given == 1 or (given == 2 and privacy.target_local_epsilon is not None):
        return []
    return [
        "privacy.noise_multiplier and privacy.target_epsilon: set exactly one of the two, or "
        "privacy.target_local_epsilon"
    ]


def _secure_aggregation(plan: _Readable) -> Iterable[str]:
    if plan.privacy.secure_aggregation:
        return ["privacy.secure_aggregation=true is not available in this release; set it to false"]
    return []


def _noise_place(plan: _Readable) -> Iterable[str]:
    if plan.privacy.unit == "example" and plan.privacy.noise == "server":
        return [
            'privacy.noise="server" does not go with unit="example": the noise belongs to the '
            'steps of each client; set noise = "device"'
        ]
    return []


def _correlated_noise(plan: _Readable) -> Iterable[str]:
    """Noise that hangs together over rounds: who can draw it, and for what."""
    mechanism = plan.privacy.mechanism
    if mechanism == "gaussian":
        return []
    name = f'privacy.mechanism="{mechanism}"'
    if plan.privacy.unit == "example":
        return [
            f'{name} does not go with unit="example": the noise belongs to the steps of each '
            'client, and the rounds of a client share none; set mechanism = "gaussian"'
        ]
    if plan.privacy.noise == "device":
        return [
            f'{name} does not go with noise="device": noise that is correlated over rounds is '
            "drawn by one party that remembers the earlier draws, and devices come and go; set "
            'noise = "server", or mechanism = "gaussian"'
        ]
    return []


def _separation(plan: _Readable) -> Iterable[str]:
    """Correlated noise is accounted for users that keep a separation, and only so."""
    mechanism, sampling = plan.privacy.mechanism, plan.clients.sampling
    if mechanism in ("tree", "banded") and sampling != "min_separation":
        return [
            f'privacy.mechanism="{mechanism}" does not go with clients.sampling="{sampling}": it '
            "is accounted for rounds of one user that are far enough apart; set sampling = "
            '"min_separation"'
        ]
    if mechanism == "gaussian" and sampling == "min_separation":
        return [
            'clients.sampling="min_separation" does not go with privacy.mechanism="gaussian"; for '
            'independent noise set mechanism = "banded" and bands = 1'
        ]
    return []


def _bands(plan: _Readable) -> Iterable[str]:
    bands, mechanism = plan.privacy.bands, plan.privacy.mechanism
    if bands is None:
        return []
    if mechanism != "banded":
        return [f'privacy.bands={bands} is for mechanism="banded", not "{mechanism}"']
    separation = plan.clients.population // plan.clients.clients_per_round
    if bands > max(separation, 1):
        return [
            f"privacy.bands={bands} must be at most {separation}, the whole rounds in "
            "clients.population / clients.clients_per_round that a user stays away: with more, "
            "its rounds would add up"
        ]
    return []


def _auto(plan: _Readable) -> Iterable[str]:
    if plan.privacy.mechanism == "auto" and plan.privacy.target_epsilon is None:
        return [
            'privacy.mechanism="auto" needs privacy.target_epsilon: mechanisms are compared at '
            "the same epsilon"
        ]
    return []


def _rounds_of_a_tree(plan: _Readable) -> Iterable[str]:
    if plan.privacy.mechanism == "tree" and plan.server.rounds > MOST_ROUNDS_OF_A_TREE:
        return [
            f"server.rounds={plan.server.rounds} must be at most {MOST_ROUNDS_OF_A_TREE} with "
            'privacy.mechanism="tree", whose accounting walks through every round; set '
            'mechanism = "banded"'
        ]
    return []


def _adaptive_clipping(plan: _Readable) -> Iterable[str]:
    """A clip norm that follows the updates: for whom, and beside which noise."""
    privacy = plan.privacy
    if not privacy.adaptive_clipping:
        return []
    name, instead = "privacy.adaptive_clipping=true", "set adaptive_clipping = false"
    if privacy.unit == "example":
        return [
            f'{name} does not go with unit="example": clients would have to tell in every step how '
            f"many gradients were clipped; {instead}"
        ]
    if privacy.mechanism != "gaussian":
        return [
            f'{name} does not go with mechanism="{privacy.mechanism}": later noise takes earlier '
            "noise off again, and that of another clip norm would have another scale; set "
            'mechanism = "gaussian", or adaptive_clipping = false'
        ]
    return []


def _clipping(plan: _Readable) -> Iterable[str]:
    """Clipping in parts bounds a whole update, and by the plan's clip norm alone."""
    privacy = plan.privacy
    name = f'privacy.clipping="{privacy.clipping}"'
    if privacy.clipping == "global":
        return []
    if privacy.unit == "example":
        return [
            f'{name} does not go with unit="example": each example\'s gradient is clipped as a '
            'whole; set clipping = "global"'
        ]
    if privacy.adaptive_clipping:
        return [
            f"{name} does not go with adaptive_clipping=true: the quantile is one of whole norms, "
            'and an update within it can be clipped in a part; set clipping = "global"'
        ]
    return []


def _clip_count(plan: _Readable) -> Iterable[str]:
    """The count takes its part of the noise multiplier, and may not take all of it."""
    privacy, noise = plan.privacy, plan.privacy.noise_multiplier
    if not privacy.adaptive_clipping or noise is None:  # calibration looks at what it solves
        return []
    stddev = clip_count_stddev_of(
        privacy.clip_count_stddev,
        noise_multiplier=noise,
        clients_per_round=plan.clients.clients_per_round,
    )
    fault = fault_of_noise(noise, stddev)
    return [fault] if fault else []


def _loss(plan: _Readable) -> Iterable[str]:
    loss = plan.local_training.loss
    if loss not in LOSSES and ":" not in loss:
        return [
            f"local_training.loss={loss!r} must be one of {', '.join(LOSSES)} or "
            '"package.module:function"'
        ]
    return []


def _target(plan: _Readable) -> Iterable[str]:
    loss, target = plan.local_training.loss, plan.local_training.target
    if loss not in LOSSES or target == "auto":
        return []
    ids = loss == SPARSE_LOSS
    if ids != (target == "class_ids"):
        return [
            f'local_training.target="{target}" does not fit loss='
            f'"{loss}", which takes {"class ids" if ids else "values"}; leave it out'
        ]
    return []


def _optimizer_state(plan: _Readable) -> Iterable[str]:
    training = plan.local_training
    if training.optimizer_state == "keep" and training.optimizer == "sgd":
        return [
            'local_training.optimizer_state="keep" does not go with optimizer="sgd", which has no '
            'state; set optimizer = "momentum" or "adam", or leave optimizer_state out'
        ]
    return []


def _data_path(plan: _Readable) -> Iterable[str]:
    source, path = plan.data.source, plan.data.path
    if _is_own(source):
        return [] if path else [f'data.path is missing: source="{source}" needs it']
    if path or plan.data.test_path:
        return [f'data.path and data.test_path need {_OWN_SOURCES}, not "{source}"']
    return []


def _partition(plan: _Readable) -> Iterable[str]:
    source, partition = plan.data.source, plan.data.partition
    if _is_own(source) and partition != "natural":
        return [
            f'data.partition="{partition}" must be "natural" with source="{source}": '
            "the data already say whose they are"
        ]
    if not _is_own(source) and partition == "natural":
        return [f'data.partition="natural" needs {_OWN_SOURCES}, not "{source}"']
    return []


def _test_path(plan: _Readable) -> Iterable[str]:
    if plan.data.source == "store" and plan.data.test_path:
        return ['data.test_path is not for source "store": a store has its own test split']
    return []


def _feature_shape(plan: _Readable) -> Iterable[str]:
    if plan.data.source == "csv" and not plan.data.feature_shape:
        return ['data.feature_shape is missing: source="csv" needs it, e.g. [8, 8, 1]']
    return []


def _is_own(source: str) -> bool:
    """Whether the data are a user's own files."""
    return source in ("folder", "csv", "store")


_CHECKS = (
    _loss,
    _target,
    _optimizer_state,
    _cohort,
    _smallest_cohort,
    _delta,
    _noise,
    faults_of_local_target,
    faults_of_sensitivity,
    _secure_aggregation,
    _noise_place,
    _correlated_noise,
    _separation,
    _bands,
    _auto,
    _rounds_of_a_tree,
    _adaptive_clipping,
    _clip_count,
    _clipping,
    _data_path,
    _test_path,
    _partition,
    _feature_shape,
    faults_of_tuning,
)
