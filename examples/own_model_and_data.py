"""Your own Keras model on your own data, from files to a task for devices."""

import sys
from pathlib import Path

import numpy as np
import tensorflow as tf

import tf_dpfl


def build_model():
    """Any Sequential or functional model that ends in logits."""
    layers = tf.keras.layers
    inputs = tf.keras.Input([6])
    hidden = layers.Dense(16, "tanh")(inputs)
    return tf.keras.Model(inputs, layers.Dense(3)(layers.Concatenate()([inputs, hidden])))


def write_data(folder):
    """150 people whose readings fall into three kinds; yours come from elsewhere."""
    random = np.random.default_rng(0)
    (folder / "clients").mkdir(parents=True)
    for name in ["test.npz", *(f"clients/{i:03d}.npz" for i in range(150))]:
        y = random.integers(0, 3, 300 if name == "test.npz" else 30)
        x = random.normal(size=(len(y), 6)) + 1.5 * np.eye(3, 6)[y]
        np.savez(folder / name, x=x.astype("float32"), y=y)


if __name__ == "__main__":
    work = Path(sys.argv[1] if len(sys.argv) > 1 else ".")
    write_data(work / "own_data")
    (work / "plan.toml").write_bytes(Path(__file__).with_suffix(".toml").read_bytes())
    result = tf_dpfl.simulate(tf_dpfl.load_plan(work / "plan.toml"), work / "run")
    print(f"accuracy {result.accuracy:.3f}", result.card.to_text(), sep="\n")
    tf_dpfl.export_client(work / "run", work / "task", signing_key=work / "author.key")
    key = {"signing_key": work / "author.key"}
    tf_dpfl.export_model(work / "run", work / "model/own.keras", format="keras", **key)
