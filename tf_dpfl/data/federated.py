"""From a plan to its federated data set, everything about the data checked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tf_dpfl.data.columns import FederatedData, scaled
from tf_dpfl.data.partitions import partition_of_plan, partition_sha256
from tf_dpfl.data.sources import load_source
from tf_dpfl.data.store import open_store
from tf_dpfl.data.user_files import (
    ClientExamples,
    client_paths,
    read_client_csv,
    read_client_folder,
)
from tf_dpfl.protocol.errors import DataError
from tf_dpfl.protocol.examples import Examples, read_arrays
from tf_dpfl.protocol.interface import INPUT, TARGET
from tf_dpfl.protocol.plan import Plan

# A larger label is a number taken for a class, and would be a model beyond memory.
_MOST_CLASSES = 2**16

__all__ = ["FederatedData", "load_federated_data"]


def load_federated_data(plan: Plan) -> FederatedData:
    """The clients of `plan`, and the test split, which no client has.

    Guarantees: exactly `clients.population` clients, each with 1 to
    `clients.examples_per_client` examples (a longer file's first ones); finite
    features of one shape; class ids in [0, classes), or finite values where
    `local_training` says that the target holds values.

    Raises:
      DataError: a source can not be found, a file is malformed, the data are
        too small or their clients are not as many as the plan says.
    """
    if plan.data.source == "store":
        return _stored_data(plan)
    if plan.data.source in ("folder", "csv"):
        return _own_data(plan)
    return _public_data(plan)


def _public_data(plan: Plan) -> FederatedData:
    source = load_source(plan.data.source)
    parts = partition_of_plan(source.train_y, plan)
    order = np.concatenate(parts)
    counts = [len(part) for part in parts]
    width = len(str(len(parts) - 1))
    return FederatedData(
        inputs={INPUT: source.train_x[order]},
        target=source.train_y[order],
        offsets=_offsets(counts),
        feature_scale=source.feature_scale,
        classes=source.classes,
        test={INPUT: scaled(source.test_x, source.feature_scale), TARGET: source.test_y},
        client_names=tuple(f"{index:0{width}d}" for index in range(len(parts))),
        description={
            **source.record,
            **_partition_record(plan),
            "partition_sha256": partition_sha256(parts),
            "population": len(parts),
            "input_shape": list(source.train_x.shape[1:]),
            "classes": source.classes,
            "examples": int(sum(counts)),
            "smallest_client": min(counts),
            "largest_client": max(counts),
            "test_examples": len(source.test_y),
        },
    )


def _stored_data(plan: Plan) -> FederatedData:
    data = open_store(Path(plan.data.path))
    _check_population(plan, data.population)
    if plan.local_training.targets_are_class_ids and data.classes is None:
        raise DataError(
            f"{plan.data.path}: its target holds values, local_training.loss="
            f"{plan.local_training.loss!r} needs class ids"
        )
    return data


def _check_population(plan: Plan, population: int) -> None:
    if population != plan.clients.population:
        raise DataError(
            f"{plan.data.path}: has {population} clients, clients.population="
            f"{plan.clients.population}; set it to {population}"
        )


def _partition_record(plan: Plan) -> dict[str, Any]:
    record: dict[str, Any] = {
        "partition": plan.data.partition,
        "partition_seed": plan.data.partition_seed,
    }
    if plan.data.partition == "dirichlet":
        record["dirichlet_alpha"] = plan.data.dirichlet_alpha
    if plan.data.partition == "shards":
        record["shards_per_client"] = plan.data.shards_per_client
    return record


def _own_data(plan: Plan) -> FederatedData:
    clients = _read_own_clients(plan)
    _check_population(plan, len(clients))
    values = not plan.local_training.targets_are_class_ids
    first = clients[0].examples
    test = {name: array[:0] for name, array in first.items()}
    if plan.data.test_path:
        test_path = Path(plan.data.test_path)
        _check_apart(test_path, Path(plan.data.path))
        shapes = {name: array.shape[1:] for name, array in first.items()}
        test = read_arrays(test_path, shapes=shapes, values=values)
    columns = {
        name: np.concatenate([client.examples[name] for client in clients]).astype(dtype)
        for name, dtype in _dtypes([*(client.examples for client in clients), test]).items()
    }
    target = columns.pop(TARGET)
    classes = None if values else _classes(plan, target, test[TARGET])
    return FederatedData(
        inputs=columns,
        target=target,
        offsets=_offsets([len(client.examples[TARGET]) for client in clients]),
        feature_scale=1.0,
        classes=classes,
        test={
            name: array.astype({**columns, TARGET: target}[name].dtype)
            for name, array in test.items()
        },
        client_names=tuple(client.name for client in clients),
        # What is recorded may be published: of people's own data nothing that
        # depends on what a client holds, no digest and no sizes.
        description={
            "source": plan.data.source,
            "partition": "natural",
            "population": len(clients),
            "examples_per_client_at_most": plan.clients.examples_per_client,
            **_shape_record(columns),
            "classes": classes,
            "test_examples": len(test[TARGET]),
        },
    )


def _dtypes(parts: Sequence[Examples]) -> dict[str, Any]:
    """The dtype of each tensor: float32 as soon as one client's file has it so."""
    return {
        name: np.int32 if all(part[name].dtype == np.int32 for part in parts) else np.float32
        for name in parts[0]
    }


def _classes(plan: Plan, labels: np.ndarray[Any, Any], test_labels: np.ndarray[Any, Any]) -> int:
    classes = max(2, int(labels.max()) + 1, int(test_labels.max(initial=0)) + 1)
    if classes > _MOST_CLASSES:
        raise DataError(
            f"{plan.data.path}: the largest label is {classes - 1}, so the model would need "
            f"{classes} classes, allowed are {_MOST_CLASSES}; number the labels 0, 1, 2, ..."
        )
    return classes


def _shape_record(inputs: Examples) -> dict[str, Any]:
    if list(inputs) == [INPUT]:
        return {"input_shape": list(inputs[INPUT].shape[1:])}
    return {"input_shapes": {name: list(array.shape[1:]) for name, array in inputs.items()}}


def _read_own_clients(plan: Plan) -> list[ClientExamples]:
    data, limit = plan.data, plan.clients.examples_per_client
    values = not plan.local_training.targets_are_class_ids
    path = Path(data.path)
    if data.source == "folder":
        return read_client_folder(
            path, input_shape=data.feature_shape or None, values=values, limit=limit
        )
    return read_client_csv(
        path,
        client_column=data.client_column,
        label_column=data.label_column,
        input_shape=data.feature_shape,
        values=values,
        limit=limit,
    )


def _check_apart(test_path: Path, clients_path: Path) -> None:
    """Raises DataError when the test file would be read as a client's too."""
    taken = client_paths(clients_path) if clients_path.is_dir() else [clients_path]
    if test_path.exists() and any(test_path.samefile(path) for path in taken):
        raise DataError(
            f"data.test_path={test_path} is also one of the clients' files; the test split "
            "must never reach a client: move it out of data.path"
        )


def _offsets(counts: Sequence[int]) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)])
