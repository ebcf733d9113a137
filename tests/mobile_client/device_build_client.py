"""Builds real client files in a process of its own: `python device_build_client.py OUT`.

Writes OUT/<model>.tflite and OUT/<model>.npz (weights, names, shapes) for an
mlp on 8x8x1 and the CNN on 28x28x1.
"""

import sys
from pathlib import Path

import numpy as np
import tensorflow as tf
from device_task import SHAPES, plan_of

from models.registry import build_model
from tf_dpfl.client_work.computation import layout_of
from tf_dpfl.export.client import build_client_tflite


def main(out: Path) -> None:
    for name, shape in SHAPES.items():
        tf.keras.utils.set_random_seed(7)
        model = build_model(name.split("-")[0], input_shape=shape, classes=10)
        (out / f"{name}.tflite").write_bytes(build_client_tflite(model, plan_of(name)))
        layout = layout_of(model)
        np.savez(
            out / f"{name}.npz",
            weights=layout.join([v.numpy() for v in model.trainable_variables]),
            names=np.array(layout.names),
            shapes=np.array([",".join(map(str, s)) for s in layout.shapes]),
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
