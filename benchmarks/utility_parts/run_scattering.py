"""Scattering coefficients of images: `python run_scattering.py IMAGES.npy FEATURES.npy`.

Runs in an environment of its own (scattering.txt): kymatio 0.3 does not import beside
a newer scipy. J = 2 and L = 8 on 28 x 28 (Tramer & Boneh 2011.11660): 81 channels of
7 x 7. Writes float16 [n, 3969].
"""

from __future__ import annotations

import sys

import numpy as np
import torch
from kymatio.torch import Scattering2D

BATCH = 500


def main() -> None:
    """Transforms all images; they are uint8 [n, 28, 28]."""
    images, features = sys.argv[1:]
    torch.set_num_threads(1)
    transform = Scattering2D(J=2, L=8, shape=(28, 28))
    pixels = np.load(images)
    out = np.empty((len(pixels), 81 * 7 * 7), np.float16)
    with torch.no_grad():
        for first in range(0, len(pixels), BATCH):
            part = torch.from_numpy(pixels[first : first + BATCH].astype(np.float32) / 255.0)
            out[first : first + BATCH] = transform(part.contiguous()).reshape(len(part), -1).numpy()
    np.save(features, out)


if __name__ == "__main__":
    main()
