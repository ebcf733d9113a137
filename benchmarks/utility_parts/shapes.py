"""Generated images of shapes: what clothing looks like to a filter, from nobody's data."""

from __future__ import annotations

import numpy as np

SIZE = 28


def generated_images(count: int, *, seed: int = 0) -> np.ndarray:
    """uint8 [count, 28, 28]: one to six soft-edged blobs on black, some striped, some noisy."""
    rng = np.random.default_rng(seed)
    down, right = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32)
    images = np.zeros((count, SIZE, SIZE), np.float32)
    for image in images:
        for _ in range(rng.integers(1, 7)):
            mask = _blob(rng, down, right)
            image *= 1.0 - mask
            image += mask * _paint(rng, down, right)
        if rng.random() < 0.6:
            grain = rng.normal(0.0, rng.uniform(0.0, 0.12), image.shape)
            image += (image > 0.05) * grain
        np.clip(image, 0.0, 1.0, out=image)
        if rng.random() < 0.5:  # clothes are mostly symmetric
            np.maximum(image, image[:, ::-1].copy(), out=image)
    return (images * 255).astype(np.uint8)


def _blob(rng: np.random.Generator, down: np.ndarray, right: np.ndarray) -> np.ndarray:
    """How much of each pixel a superellipse covers, 0 to 1."""
    center = rng.normal(SIZE / 2 - 0.5, 5.0, 2)
    radii = rng.uniform(2.0, 13.0, 2)
    upright = rng.random() < 0.7
    turn = rng.normal(0.0, 0.35) if upright else rng.uniform(0.0, np.pi)
    across = (right - center[0]) * np.cos(turn) + (down - center[1]) * np.sin(turn)
    along = (down - center[1]) * np.cos(turn) - (right - center[0]) * np.sin(turn)
    power = rng.choice([2, 4, 10])
    reach = (np.abs(across / radii[0]) ** power + np.abs(along / radii[1]) ** power) ** (1 / power)
    return np.clip((1.0 - reach) * radii.min() + 0.5, 0.0, 1.0)


def _paint(rng: np.random.Generator, down: np.ndarray, right: np.ndarray) -> np.ndarray | float:
    """One grey value, or stripes around it."""
    value = rng.uniform(0.0, 1.0) if rng.random() < 0.85 else 0.0
    if rng.random() < 0.5:
        return value
    angle = rng.choice([0.0, np.pi / 2, rng.uniform(0.0, np.pi)])
    wave = right * np.cos(angle) + down * np.sin(angle)
    frequency, phase = rng.uniform(0.1, 0.5), rng.uniform(0.0, 2 * np.pi)
    stripes = rng.uniform(0.05, 0.4) * np.sin(2 * np.pi * frequency * wave + phase)
    return np.clip(value + stripes, 0.0, 1.0)
