"""Scattering features of Fashion-MNIST, and one private look at their second moment."""

from __future__ import annotations

import math
import os
import subprocess
from pathlib import Path

import numpy as np
from device_parts.environments import ROOT, environment, variables
from shapes import generated_images

from tf_dpfl.protocol.noise import gaussian_noise

PARTS = Path(__file__).resolve().parent
CACHE = ROOT / "build" / "bench" / "utility"
GENERATED = 15_000  # images that the first preconditioning is made of
KEPT = 1500  # directions it keeps
FLOOR = 60.0  # added to its second moment's eigenvalues
GROUPS = 27  # of the channels that are normalised together, as in 2011.11660
NORM = 50.0  # of every example's features


def scattering(name: str, images: np.ndarray) -> np.ndarray:
    """Features float16 [n, 3969] of images uint8 [n, 28, 28], kept under `name`."""
    CACHE.mkdir(parents=True, exist_ok=True)
    file = CACHE / f"{name}.npy"
    if not file.exists():
        mine = f"{name}_{os.getpid()}"  # another run may be at the same
        pixels, half = CACHE / f"{mine}_images.npy", CACHE / f"{mine}_half.npy"
        np.save(pixels, images)
        python = environment("scattering", PARTS)
        subprocess.run(
            [python, PARTS / "run_scattering.py", pixels, half], check=True, env=variables()
        )
        pixels.unlink()
        half.rename(file)
    return np.load(file, mmap_mode="r")


def preconditioner() -> np.ndarray:
    """A matrix [3969, KEPT]: half a whitening of generated images, in nobody's data."""
    file = CACHE / "preconditioner.npy"
    if not file.exists():
        public = symmetric_features("generated", generated_images(GENERATED))
        values, vectors = np.linalg.eigh(second_moment(public))
        first = np.argsort(values)[::-1][:KEPT]
        matrix = vectors[:, first] / np.sqrt(np.maximum(values[first], 0.0) + FLOOR)
        half = CACHE / f"preconditioner_{os.getpid()}_half.npy"
        np.save(half, matrix.astype(np.float32))
        half.rename(file)
    return np.load(file)


def preconditioned(features: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """`features` [n, 3969] times `matrix`, each example of norm `NORM`: [n, KEPT]."""
    parts = range(0, len(features), 4000)
    return np.concatenate([to_norm(features[i : i + 4000] @ matrix) for i in parts])


def symmetric_features(name: str, images: np.ndarray) -> np.ndarray:
    """The normalised mean of an image's and its mirror's features, float32 [n, 3969].

    Each example's own: no statistics over examples.
    """
    plain, mirrored = scattering(name, images), scattering(f"{name}_mirror", images[:, :, ::-1])
    out = np.empty(plain.shape, np.float32)
    for first in range(0, len(plain), 4000):
        rows = slice(first, first + 4000)
        out[rows] = to_norm(_group_normalised(plain[rows]) + _group_normalised(mirrored[rows]))
    return out


def _group_normalised(features: np.ndarray) -> np.ndarray:
    grouped = features.astype(np.float32).reshape(len(features), GROUPS, -1)
    mean = grouped.mean(axis=2, keepdims=True)
    deviation = np.sqrt(grouped.var(axis=2, keepdims=True) + 1e-5)
    return ((grouped - mean) / deviation).reshape(len(features), -1)


def to_norm(features: np.ndarray) -> np.ndarray:
    """Every row with the L2 norm `NORM`."""
    norms = np.linalg.norm(features, axis=1, keepdims=True)
    return features * (NORM / np.maximum(norms, 1e-12))


def second_moment(features: np.ndarray) -> np.ndarray:
    """Sum over examples of x x^T, x scaled to norm 1; float32 [d, d]."""
    size = features.shape[1]
    total = np.zeros((size, size), np.float32)
    for first in range(0, len(features), 4000):
        rows = features[first : first + 4000] / NORM
        total += rows.T @ rows
    return total


def private_second_moment(features: np.ndarray, *, noise_multiplier: float) -> np.ndarray:
    """`second_moment` with noise: the Gaussian mechanism.

    One example more or less changes the sum by a matrix of Frobenius norm 1. What is
    released is the upper triangle with off-diagonal entries times sqrt(2), a vector of
    that norm; the noise on an off-diagonal entry is sqrt(2) times smaller therefore.
    """
    total = second_moment(features)
    size = len(total)
    upper = np.triu_indices(size, 1)
    noise = gaussian_noise(size * (size + 1) // 2, stddev=noise_multiplier)
    total[np.diag_indices(size)] += noise[:size]
    total[upper] += noise[size:] / math.sqrt(2)
    total[upper[::-1]] = total[upper]
    return total


def shrinking(moment: np.ndarray, *, noise_multiplier: float) -> tuple[np.ndarray, np.ndarray]:
    """Directions [d, k] that stand out of the noise, and the factors [k] to shrink them by.

    Half a whitening, down to the noise's edge: post-processing of a private release.
    """
    size = len(moment)
    edge = noise_multiplier * math.sqrt(2 * size)  # of the noise's own spectrum
    values, vectors = np.linalg.eigh(moment)
    standing = values > 1.1 * edge
    values, vectors = values[standing], vectors[:, standing]
    values = np.maximum(values - edge**2 / 4 / values, 1.0)  # the noise's part taken off
    return vectors, np.sqrt(edge / (values + edge))


def shrunk(features: np.ndarray, vectors: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """`features` with their parts along `vectors` times `factors`, again of norm `NORM`."""
    out = np.empty_like(features)
    for first in range(0, len(features), 4000):
        rows = slice(first, first + 4000)
        parts = features[rows] @ vectors
        out[rows] = to_norm(features[rows] + (parts * (factors - 1.0)) @ vectors.T)
    return out
