"""The client computation behind one interface: in TensorFlow and in an interpreter."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from tf_dpfl.client_work.computation import ClientComputation, layout_of
from tf_dpfl.client_work.preparing import KerasModel, prepare_model
from tf_dpfl.export.client import random_specs, tensor_specs
from tf_dpfl.export.quiet import quiet
from tf_dpfl.protocol import signatures
from tf_dpfl.protocol.errors import ExportError
from tf_dpfl.protocol.interpreter import load_interpreter
from tf_dpfl.protocol.plan import Plan
from tf_dpfl.protocol.tensors import Float32

Arrays = Mapping[str, Any]


@dataclass(frozen=True)
class Runner:
    """What a client can be asked for; NumPy in and out, as in `protocol.signatures`.

    `train` takes (batch, weight, learning_rate) and returns the loss; a batch maps
    the names of the interface to arrays (and `random` to its uniforms where the
    model has random layers), as do the inputs of `infer`.
    `privatize_update` takes (initial, clip_norm, noise). `train_dp` takes (batch,
    weight, learning_rate, sensitivity, noise); None without the signature, as are
    `get_optimizer_state` and `set_optimizer_state`.
    """

    set_weights: Callable[[Float32], int]
    get_weights: Callable[[], Float32]
    train: Callable[[Arrays, Float32, float], float]
    infer: Callable[[Arrays], Float32]
    privatize_update: Callable[[Float32, float, Float32], Float32]
    train_dp: Callable[[Arrays, Float32, float, float, Float32], Any] | None = None
    get_optimizer_state: Callable[[], Float32] | None = None
    set_optimizer_state: Callable[[Float32], Any] | None = None


def tensorflow_runner(model: tf.keras.Model, plan: Plan) -> Runner:
    """The reference: Keras' own layers, TensorFlow's kernels and own gradients.

    Its weights are the model's variables. A model with random layers trains as
    prepared, so that both runs can be fed the same uniforms. `train_dp` goes
    through the examples one by one.
    """
    keras = KerasModel(model)
    random = prepare_model(model).random_values > 0
    computation = ClientComputation(
        model,
        plan.local_training,
        forward=None if random else keras,
        dp_method="loop",
        clipping=plan.privacy.clipping,
    )
    size, interface = plan.local_training.batch_size, computation.interface
    vector = tf.TensorSpec([computation.layout.size], tf.float32)
    scalar = tf.TensorSpec([], tf.float32)
    set_weights = _trace(computation.set_weights, vector)
    get_weights = _trace(computation.get_weights)
    step = (tensor_specs(interface.tensors, size), tf.TensorSpec([size], tf.float32), scalar)
    uniforms = random_specs(interface, size)
    train = _trace(computation.train_batch, *step, *uniforms)
    shares = [tf.TensorSpec(shape, tf.float32) for shape in computation.layout.shapes]
    train_dp = _trace(computation.train_dp_batch, *step, scalar, shares, *uniforms)
    infer = _trace(
        lambda inputs: keras([inputs[tensor.name] for tensor in interface.inputs], training=False),
        tensor_specs(interface.inputs, None),
    )
    privatize_update = _trace(computation.privatize_update, vector, scalar, vector)
    kept = plan.local_training.kept_values(weights=computation.layout.size)

    def of_interface(batch: Arrays) -> Arrays:
        return {tensor.name: batch[tensor.name] for tensor in interface.tensors}

    def random_of(batch: Arrays) -> list[Any]:
        return [batch["random"]] if interface.random_values else []

    return Runner(
        set_weights=lambda weights: int(set_weights(weights)),
        get_weights=get_weights,
        train=lambda batch, weight, rate: float(
            train(of_interface(batch), weight, np.float32(rate), *random_of(batch))
        ),
        train_dp=lambda batch, weight, rate, sensitivity, noise: train_dp(
            of_interface(batch),
            weight,
            np.float32(rate),
            np.float32(sensitivity),
            computation.layout.split(noise),
            *random_of(batch),
        ),
        infer=infer,
        privatize_update=lambda initial, clip_norm, noise: privatize_update(
            initial, np.float32(clip_norm), noise
        ),
        get_optimizer_state=_trace(computation.get_optimizer_state) if kept else None,
        set_optimizer_state=(
            _trace(computation.set_optimizer_state, tf.TensorSpec([kept], tf.float32))
            if kept
            else None
        ),
    )


def _trace(function: Callable[..., Any], *specs: Any) -> Callable[..., Any]:
    """`function` as a graph for exactly these inputs, from NumPy to NumPy."""
    traced = tf.function(function, autograph=False, input_signature=specs)
    return lambda *values: np.array(traced(*tf.nest.map_structure(tf.constant, values)))


def interpreter_runner(content: bytes, model: tf.keras.Model, plan: Plan) -> Runner:
    """`client.tflite` of `model` in the interpreter a device would use.

    Raises ExportError unless the file has exactly the signatures of the plan;
    so do the runner's functions when the interpreter gives up.
    """
    with quiet():
        interpreter = load_interpreter(content)
    found = sorted(interpreter.get_signature_list())
    if found != sorted(signatures.of_plan(plan)):
        raise ExportError(
            f"client.tflite has the signatures {found}, not {sorted(signatures.of_plan(plan))}"
        )
    run = {name: _guarded(name, interpreter.get_signature_runner(name)) for name in found}

    def train(batch: Arrays, weight: Float32, rate: float) -> float:
        arguments = {**batch, "weight": weight, "learning_rate": np.float32(rate)}
        return float(run[signatures.TRAIN](**arguments)["loss"])

    def privatize_update(initial: Float32, clip_norm: float, noise: Float32) -> Float32:
        arguments = {"initial": initial, "clip_norm": np.float32(clip_norm), "noise": noise}
        return np.array(run[signatures.PRIVATIZE_UPDATE](**arguments)["update"])

    def train_dp(
        batch: Arrays, weight: Float32, rate: float, sensitivity: float, noise: Float32
    ) -> None:
        arguments = {**batch, "weight": weight, "learning_rate": np.float32(rate)}
        arguments |= {"sensitivity": np.float32(sensitivity)}
        arguments |= signatures.noise_inputs(layout_of(model).split(noise))
        run[signatures.TRAIN_DP](**arguments)

    return Runner(
        set_weights=lambda weights: int(run[signatures.SET_WEIGHTS](weights=weights)["size"]),
        get_weights=lambda: np.array(run[signatures.GET_WEIGHTS]()["weights"]),
        train=train,
        infer=lambda inputs: np.array(run[signatures.INFER](**inputs)["logits"]),
        privatize_update=privatize_update,
        train_dp=train_dp if signatures.TRAIN_DP in run else None,
        get_optimizer_state=(
            (lambda: np.array(run[signatures.GET_OPTIMIZER_STATE]()["state"]))
            if signatures.GET_OPTIMIZER_STATE in run
            else None
        ),
        set_optimizer_state=(
            (lambda state: run[signatures.SET_OPTIMIZER_STATE](state=state))
            if signatures.SET_OPTIMIZER_STATE in run
            else None
        ),
    )


def _guarded(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` with the interpreter's own errors as ExportError."""

    def call(**arguments: Any) -> Any:
        try:
            return function(**arguments)
        except (RuntimeError, ValueError) as error:
            raise ExportError(f"signature {name} fails in the interpreter: {error}") from None

    return call
