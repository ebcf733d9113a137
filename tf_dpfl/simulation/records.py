"""How users' examples reach a shard: by id, read where they lie, or sent along.

By id, a shard is a list of user ids: the worker maps the columns' files into memory
and touches only the rows of its users. Sent, a shard holds the rows of its users as
they are stored, so that bytes stay bytes. What the shard does then is the same.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff
from numpy.typing import NDArray

from tf_dpfl.data.columns import ColumnFiles, FederatedData, check_columns
from tf_dpfl.protocol.errors import DataError
from tf_dpfl.protocol.interface import TARGET, ExampleInterface
from tf_dpfl.protocol.plan import Plan

OPTIMIZER_STATE = "optimizer_state"


@dataclass(frozen=True)
class Column:
    """A column as it is stored: `dtype`, and the `shape` of one example."""

    dtype: Any
    shape: tuple[int, ...]


@dataclass(frozen=True)
class ShardExamples:
    """The examples of a shard's k users, inside a graph.

    Attributes:
      columns: inputs and target by name, as stored; [n, ...] each.
      starts: int64 [k], the first row of each user.
      counts: int32 [k], how many rows it has, at most the plan's.
      user_ids: int64 [k].
      interface: dtypes and shapes that the model needs.
      feature_scale: what a stored byte is divided by.
      optimizer_states: float32 [k, s], where each user's optimizer goes on from; None
        where it starts anew.
    """

    columns: Mapping[str, tf.Tensor]
    starts: tf.Tensor
    counts: tf.Tensor
    user_ids: tf.Tensor
    interface: ExampleInterface
    feature_scale: float
    optimizer_states: tf.Tensor | None

    def of_user(self, index: tf.Tensor, *, multiple: int) -> dict[str, tf.Tensor]:
        """One user's examples, cast, padded with zeros to a multiple of `multiple` rows."""
        start = self.starts[index]
        count = tf.cast(self.counts[index], tf.int64)
        examples = {}
        for name, column in self.columns.items():
            rows = column[start : start + count]
            missing = [[0, -count % multiple]] + [[0, 0]] * (column.shape.rank - 1)
            examples[name] = self.cast(name, tf.pad(rows, tf.cast(missing, tf.int64)))
        return examples

    def of_users(
        self, users: tf.Tensor, counts: tf.Tensor, *, multiple: int
    ) -> dict[str, tf.Tensor]:
        """The examples of several users, cast, [K, N, ...] each.

        Args:
          users: int32 [K], places in the shard.
          counts: int32 [K], how many rows to take of each, at most its own.
          multiple: N is the largest count (at least 1) rounded up to a multiple of it.

        A user's rows beyond its count repeat its last one (the first of the user
        after it, if it has none).
        """
        length = tf.maximum(tf.reduce_max(counts) + multiple - 1, multiple) // multiple * multiple
        row = tf.minimum(tf.range(length), tf.maximum(counts[:, None] - 1, 0))
        rows = tf.gather(self.starts, users)[:, None] + tf.cast(row, tf.int64)
        examples = {}
        for name, column in self.columns.items():
            last = tf.shape(column, tf.int64)[0] - 1
            examples[name] = self.cast(name, tf.gather(column, tf.minimum(rows, last)))
        return examples

    def cast(self, name: str, rows: tf.Tensor) -> tf.Tensor:
        """Stored rows [..., *stored shape] in dtype and shape of the interface."""
        (tensor,) = (t for t in self.interface.tensors if t.name == name)
        stored = self.columns[name]
        outer = rows.shape.rank - (stored.shape.rank - 1)
        values = tf.cast(rows, tensor.dtype)
        if stored.dtype == tf.uint8 and tensor.dtype == "float32":
            values = values * (1.0 / self.feature_scale)
        if tuple(stored.shape[1:]) == tensor.shape:
            return values
        return tf.reshape(values, tf.concat([tf.shape(values)[:outer], tensor.shape], 0))


def shard_of(
    data: FederatedData,
    user_ids: NDArray[np.int64],
    plan: Plan,
    *,
    optimizer_states: NDArray[np.float32] | None = None,
) -> OrderedDict[str, Any]:
    """One shard of these users, of `ShardRecords.shard_type`.

    `optimizer_states`, float32 [k, s], are for plans that keep them alone.

    Raises IndexError when an id is not a client of `data`.
    """
    ids = np.asarray(user_ids, np.int64).reshape(-1)
    if ids.size and not (ids.min() >= 0 and ids.max() < data.population):
        raise IndexError(f"an id is not in [0, {data.population}): {ids.tolist()[:10]}")
    shard: OrderedDict[str, Any] = OrderedDict(user_id=ids)
    if optimizer_states is not None:
        shard[OPTIMIZER_STATE] = optimizer_states
    if files_to_read(data, plan) is not None:
        return shard
    starts = np.asarray(data.offsets[ids])
    counts = np.minimum(data.offsets[ids + 1] - starts, plan.clients.examples_per_client)
    shard["count"] = counts.astype(np.int32)
    first = np.cumsum(counts) - counts
    rows = np.repeat(starts - first, counts) + np.arange(int(counts.sum()))
    for name, column in {**data.inputs, TARGET: data.target}.items():
        # At least one row, which nobody has, so that there always is one to read.
        shard[name] = np.asarray(column[rows]) if len(rows) else np.zeros_like(column[:1])
    return shard


def files_to_read(data: FederatedData, plan: Plan) -> ColumnFiles | None:
    """Where workers read the examples by id; None where they are sent.

    With `simulation.records` "auto" they are read where the data have files, which
    cost a round nothing but the pages of its users.

    Raises DataError when the plan says "by_id" and the data have no files.
    """
    if plan.simulation.records == "sent":
        return None
    if plan.simulation.records == "by_id" and data.files is None:
        raise DataError(
            'simulation.records="by_id" needs data that workers can read: make a store '
            "(dpfl data store) under the same path on every worker's machine, and set "
            'data.source="store"'
        )
    return data.files


class ShardRecords:
    """The examples of one data set as shards of users, for one plan and model.

    Args:
      data: as it is given to `shard_of`.
      plan: of each user at most `clients.examples_per_client` examples are used.
      interface: the model's.
      state_size: of a user's optimizer state that is kept between rounds; 0: none is.

    Raises:
      DataError: the data do not fit the model, or the plan's `simulation.records`.
    """

    def __init__(
        self,
        data: FederatedData,
        plan: Plan,
        interface: ExampleInterface,
        *,
        state_size: int,
    ):
        check_columns(data, interface)
        self._files = files_to_read(data, plan)
        self._limit = plan.clients.examples_per_client
        self._interface = interface
        self._state_size = state_size
        self._feature_scale = float(data.feature_scale)
        self._population, self._rows = data.population, len(data.target)
        self._columns = {
            name: Column(array.dtype, tuple(array.shape[1:]))
            for name, array in {**data.inputs, TARGET: data.target}.items()
        }

    def shard_type(self) -> tff.Type:
        """The TFF type of a shard of k users; k is open.

        `user_id` int64 [k] (unique in a round: it picks the user's noise);
        `optimizer_state` float32 [k, s] where it is kept between rounds. Where
        examples are sent, also `count` int32 [k] and each column as it is stored,
        [rows of all users, ...].
        """
        fields = OrderedDict(user_id=tff.TensorType(np.int64, [None]))
        if self._state_size:
            fields[OPTIMIZER_STATE] = tff.TensorType(np.float32, [None, self._state_size])
        if self._files is None:
            fields["count"] = tff.TensorType(np.int32, [None])
            for name, column in self._columns.items():
                fields[name] = tff.TensorType(column.dtype.type, [None, *column.shape])
        return tff.to_type(fields)

    def examples(self, shard: Mapping[str, tf.Tensor]) -> ShardExamples:
        """What `shard` stands for, inside a graph."""
        if self._files is None:
            columns = {tensor.name: shard[tensor.name] for tensor in self._interface.tensors}
            counts = shard["count"]
            starts = tf.cumsum(tf.cast(counts, tf.int64), exclusive=True)
        else:
            columns, starts, counts = self._read(self._files, shard["user_id"])
        return ShardExamples(
            columns,
            starts,
            counts,
            shard["user_id"],
            self._interface,
            self._feature_scale,
            shard[OPTIMIZER_STATE] if self._state_size else None,
        )

    def _read(
        self, files: ColumnFiles, user_ids: tf.Tensor
    ) -> tuple[dict[str, tf.Tensor], tf.Tensor, tf.Tensor]:
        """Columns, starts and counts from files that are mapped into memory."""
        checks = []
        if files.header is not None:
            path, content = files.header
            checks.append(
                tf.debugging.assert_equal(
                    tf.io.read_file(path),
                    tf.constant(content),
                    f"{path} on this worker is another store than the one of the run",
                )
            )
        with tf.control_dependencies([check for check in checks if check is not None]):
            ids = tf.identity(user_ids)
        offsets = _mapped(files.offsets, np.int64, [self._population + 1])
        starts = tf.gather(offsets, ids)
        counts = tf.minimum(tf.gather(offsets, ids + 1) - starts, self._limit)
        columns = {
            tensor.name: _mapped(
                files.columns[tensor.name],
                self._columns[tensor.name].dtype,
                [self._rows, *self._columns[tensor.name].shape],
            )
            for tensor in self._interface.tensors
        }
        return columns, starts, tf.cast(counts, tf.int32)


def _mapped(path: str, dtype: Any, shape: list[int]) -> tf.Tensor:
    """A file's bytes as a tensor; only the pages that are used are read."""
    return tf.raw_ops.ImmutableConst(dtype=tf.as_dtype(dtype), shape=shape, memory_region_name=path)
