"""A device's computation alone, on any Python: `python device_round.py TASK INPUTS OUT`.

TASK is a task folder, INPUTS an `.npz` with x, y and noise [steps, d]; OUT gets
the report (`update`), and the noise and uniforms that this Python draws.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np

from mobile_client.trainer import Trainer
from tf_dpfl.protocol.manifest import (
    CLIENT_FILE,
    MANIFEST_FILE,
    PUBLIC_KEY_FILE,
    SIGNATURE_FILE,
    WEIGHTS_FILE,
    verify_manifest,
)
from tf_dpfl.protocol.noise import gaussian_noise, uniforms
from tf_dpfl.protocol.tensors import vector_from_bytes


def main(task: Path, inputs: Path, out: Path) -> None:
    manifest = verify_manifest(
        (task / MANIFEST_FILE).read_bytes(),
        (task / SIGNATURE_FILE).read_text().strip(),
        public_key=(task / PUBLIC_KEY_FILE).read_text().strip(),
    )
    trainer = Trainer((task / CLIENT_FILE).read_bytes(), manifest)
    raw = (task / WEIGHTS_FILE).read_bytes()
    with np.load(inputs) as given:
        noises, examples = given["noise"], {"x": given["x"], "y": given["y"]}
    common = {
        "weights": vector_from_bytes(raw, size=manifest.layout.size),
        "examples": examples,
    }
    if manifest.plan.privacy.unit == "example":
        draws = iter(noises)

        def draw(parts: Any) -> None:
            for part, share in zip(parts, manifest.layout.split(next(draws))):
                part[...] = share

        update = trainer.train_private_steps(**common, draw_noise=draw)
    else:
        update = trainer.train_round(**common, noise=noises[0])
    key = bytes(range(32))
    np.savez(
        out,
        update=update,
        noise=gaussian_noise(5000, stddev=2.0, random_bytes=lambda _: key),
        uniforms=uniforms(5000, lambda _: key),
    )


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
