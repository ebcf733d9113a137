"""What every system of `./run bench simulation` is given: users, models by name, settings."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

POPULATION = 1000
EXAMPLES = 60
BATCH = 20
RATE = 0.1
CLIP_NORM = 1.0
NOISE_MULTIPLIER = 0.5
CLASSES = 10
SHAPE = (28, 28, 1)


class Workload:
    """The files of a workload's folder.

    `model`: "mlp" or "cnn"; `unit`: "user" or "example"; `users`: of a round;
    `x`: uint8 [POPULATION, EXAMPLES, 28, 28, 1]; `y`: int32 [POPULATION, EXAMPLES].
    """

    def __init__(self, folder: Path):
        self.folder = folder
        settings = json.loads((folder / "workload.json").read_text())
        self.model, self.unit, self.users = (settings[k] for k in ("model", "unit", "users"))
        self.x = np.load(folder.parent / "x.npy", mmap_mode="r")
        self.y = np.load(folder.parent / "y.npy")

    def cohorts(self):
        """The users of one round after the other, for ever."""
        random = np.random.default_rng(1)
        while True:
            yield np.sort(random.choice(POPULATION, self.users, replace=False))

    def floats(self):
        """All images as float32 in [0, 1], for systems that keep them so."""
        return np.asarray(self.x, np.float32) / 255.0


def write_data(folder: Path, *, real: bool) -> None:
    """Images and labels of all users: Fashion-MNIST, or noise of the same size."""
    rows = POPULATION * EXAMPLES
    if real:
        from tf_dpfl.data.sources import load_source

        source = load_source("fashion_mnist")
        order = np.random.default_rng(0).permutation(len(source.train_x))[:rows]
        x, y = source.train_x[order], source.train_y[order]
    else:
        random = np.random.default_rng(0)
        x = random.integers(0, 256, (rows, *SHAPE), np.uint8)
        y = random.integers(0, CLASSES, rows)
    np.save(folder / "x.npy", x.reshape(POPULATION, EXAMPLES, *SHAPE))
    np.save(folder / "y.npy", y.reshape(POPULATION, EXAMPLES).astype(np.int32))


def write_workload(folder: Path, *, model: str, unit: str, users: int) -> Path:
    """A workload's folder in the one that holds the data."""
    place = folder / f"{model}-{unit}-{users}"
    place.mkdir()
    settings = {"model": model, "unit": unit, "users": users}
    (place / "workload.json").write_text(json.dumps(settings))
    return place
