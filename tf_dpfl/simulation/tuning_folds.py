"""Cross-validation over users: who is held out, what the others are, how a fold is scored."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from random import Random
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from tf_dpfl.client_work.interface import interface_of
from tf_dpfl.data.columns import FederatedData, scaled
from tf_dpfl.protocol.interface import TARGET
from tf_dpfl.protocol.noise import gaussian_noise
from tf_dpfl.protocol.plan import LocalTraining
from tf_dpfl.simulation.evaluation import Evaluator
from tf_dpfl.simulation.tuning_plans import fold_sizes

# A noised sum is rounded to this many parts of a user: far coarser than its float32 noise,
# so that no digit of the sum is left to be read below the noise.
_PARTS_OF_A_USER = 256


def draw_folds(population: int, folds: int, *, random: Random) -> list[NDArray[np.int64]]:
    """Every user in one fold: ascending ids, int64, of `fold_sizes` users each."""
    order = list(range(population))
    random.shuffle(order)
    ends = np.cumsum([0, *fold_sizes(population, folds)])
    return [np.sort(np.array(order[a:b], np.int64)) for a, b in zip(ends, ends[1:])]


@dataclass(frozen=True, eq=False)
class Fold:
    """Data split by users.

    Attributes:
      training: all other users, numbered anew, and no test example: nothing of a
        held-out user can be trained on, or looked at while others train.
      held_out: scaled examples of the held-out users by name, [m, ...].
      counts: examples of each held-out user, int64 [users].
    """

    training: FederatedData
    held_out: Mapping[str, NDArray[Any]]
    counts: NDArray[np.int64]


def split_off(data: FederatedData, held_out: NDArray[np.int64], *, limit: int) -> Fold:
    """The fold in which the users `held_out` (ascending ids) are held out.

    Copies rows into memory; of each user at most `limit` examples, as in training.
    """
    is_out = np.zeros(data.population, bool)
    is_out[held_out] = True
    stay, counts = _rows_of(data, np.flatnonzero(~is_out), limit)
    out, counts_out = _rows_of(data, np.asarray(held_out), limit)
    training = replace(
        data,
        inputs={name: np.asarray(array[stay]) for name, array in data.inputs.items()},
        target=np.asarray(data.target[stay]),
        offsets=np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)]),
        test={name: array[:0] for name, array in data.test.items()},
        client_names=tuple(np.asarray(data.client_names, object)[~is_out].tolist()),
        description={**data.description, "population": len(counts), "held_out": len(held_out)},
        files=None,
    )
    examples = {n: scaled(array[out], data.feature_scale) for n, array in data.inputs.items()}
    return Fold(training, {**examples, TARGET: np.asarray(data.target[out])}, counts_out)


def accuracy_of_users(fold: Fold, model: tf.keras.Model, settings: LocalTraining) -> float:
    """The sum over the held-out users of the part of its examples that is classified right.

    One user changes it by at most 1, whatever it holds. Private: to be noised.
    """
    judged = replace(fold.training, test=fold.held_out).fitted(interface_of(model, settings))
    if not judged.test_examples:
        return 0.0
    right = Evaluator(model, judged, settings).right()
    return sum_of_accuracies(right.reshape(judged.test_examples, -1).mean(axis=1), fold.counts)


def sum_of_accuracies(right: NDArray[Any], counts: NDArray[np.int64]) -> float:
    """The sum of users' means; a user without examples adds 0.

    `right`, [m], is in [0, 1], user by user; `counts`, [users], says how many are whose.
    """
    totals = np.concatenate([np.zeros(1), np.cumsum(right, dtype=np.float64)])
    ends = np.cumsum(counts)
    means = (totals[ends] - totals[ends - counts]) / np.maximum(counts, 1)
    return float(np.clip(means, 0.0, 1.0).sum())


def with_noise(
    sum_over_users: float, *, stddev: float, random_bytes: Callable[[int], bytes] = os.urandom
) -> float:
    """The sum with Gaussian noise, in whole 256ths of a user; `stddev` in users, > 0."""
    noise = float(gaussian_noise(1, stddev=stddev, random_bytes=random_bytes)[0])
    return round((sum_over_users + noise) * _PARTS_OF_A_USER) / _PARTS_OF_A_USER


def _rows_of(
    data: FederatedData, users: NDArray[np.int64], limit: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Indices of the rows of `users`, user by user, and how many each has."""
    counts: NDArray[np.int64] = np.minimum(data.counts[users], limit)
    first: NDArray[np.int64] = np.repeat(data.offsets[users] - (np.cumsum(counts) - counts), counts)
    return first + np.arange(counts.sum(), dtype=np.int64), counts
