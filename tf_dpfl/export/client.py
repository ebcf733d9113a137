"""Building `client.tflite`: the client computation as TFLite signatures."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import tensorflow as tf

from tf_dpfl.client_work.computation import ClientComputation
from tf_dpfl.export.convert import convert
from tf_dpfl.export.gradients import op_gradients
from tf_dpfl.export.gradients.rules import UnsupportedOpError
from tf_dpfl.export.layers import layer_of_op
from tf_dpfl.export.refusals import faults_of_layers, faults_of_rules
from tf_dpfl.protocol import signatures
from tf_dpfl.protocol.errors import ExportError
from tf_dpfl.protocol.interface import ExampleInterface, ExampleTensor
from tf_dpfl.protocol.manifest import DpMethod
from tf_dpfl.protocol.plan import Plan
from tf_dpfl.protocol.tensors import TensorLayout


def build_client_tflite(
    model: tf.keras.Model, plan: Plan, *, dp_method: str | None = None
) -> bytes:
    """The content of `client.tflite`, made of TFLite builtin ops only.

    The file is not checked here: `verify.verify_client_tflite` does that.

    Args:
      model: a built Keras model with one output; its weights are not changed.
      plan: `local_training` gives batch size, loss and optimizer, `privacy.clipping` how
        reports are clipped; a plan with the unit "example" adds the signature `train_dp`.
      dp_method: of `train_dp`, "one_pass" or "loop"; by default the one that
        `ClientComputation.choose_dp_method` finds sound.

    Raises:
      ExportError: names each layer and op that has no gradient rule or no
        TFLite builtin.
      ModelError: the model does not fit the plan's loss.
    """
    rules = op_gradients()
    computation = ClientComputation(
        model,
        plan.local_training,
        op_gradients=rules,
        dp_method=dp_method,
        clipping=plan.privacy.clipping,
    )
    with _all_faults(model, computation, plan, rules):
        functions = _signatures(computation, plan)
    step = signatures.step_of_unit(plan.privacy.unit)
    return convert(computation, functions, model=model, variables_change=True, primary=step)


def dp_method_of(model: tf.keras.Model, plan: Plan) -> DpMethod | None:
    """How `train_dp` of the file will clip, and why; None for files without it.

    Raises as `build_client_tflite`.
    """
    if signatures.TRAIN_DP not in signatures.of_plan(plan):
        return None
    rules = op_gradients()
    computation = ClientComputation(model, plan.local_training, op_gradients=rules)
    with _all_faults(model, computation, plan, rules):
        method = computation.choose_dp_method()
    return DpMethod(method.name, method.reason)


@contextlib.contextmanager
def _all_faults(
    model: tf.keras.Model, computation: ClientComputation, plan: Plan, rules: Mapping[str, str]
) -> Iterator[None]:
    """Around tracing: where a layer can not be trained, ExportError names every one."""
    faults = faults_of_layers(model, rules)
    if not faults:
        try:
            yield
            return
        except UnsupportedOpError as error:
            faults = [f"{layer_of_op(model, error.op_name)}: {error}"]
    train = functools.partial(_train, computation, plan.local_training.batch_size)
    named = {fault.partition(": ")[0] for fault in faults}
    refused = [f for f in faults_of_rules(model, train) if f.partition(": ")[0] not in named]
    raise ExportError(faults + refused)


def _signatures(computation: ClientComputation, plan: Plan) -> dict[str, Any]:
    """One concrete function per name in `protocol.signatures`."""
    batch_size, flat = plan.local_training.batch_size, [computation.layout.size]

    def vector(name: str) -> tf.TensorSpec:
        return tf.TensorSpec(flat, tf.float32, name)

    privatize_update = _concrete(
        lambda initial, clip_norm, noise: {
            "update": computation.privatize_update(initial, clip_norm, noise)
        },
        vector("initial"),
        _scalar("clip_norm"),
        vector("noise"),
    )
    functions = {
        signatures.TRAIN: _train(computation, batch_size),
        signatures.PRIVATIZE_UPDATE: privatize_update,
        signatures.INFER: infer_signature(computation.infer, computation.interface.inputs),
        signatures.GET_WEIGHTS: _concrete(lambda: {"weights": computation.get_weights()}),
        signatures.SET_WEIGHTS: _concrete(
            lambda weights: {"size": computation.set_weights(weights)}, vector("weights")
        ),
    }
    if signatures.GET_OPTIMIZER_STATE in signatures.of_plan(plan):
        size = plan.local_training.kept_values(weights=computation.layout.size)
        functions[signatures.GET_OPTIMIZER_STATE] = _concrete(
            lambda: {"state": computation.get_optimizer_state()}
        )
        functions[signatures.SET_OPTIMIZER_STATE] = _concrete(
            lambda state: {"size": computation.set_optimizer_state(state)},
            tf.TensorSpec([size], tf.float32, "state"),
        )
    if signatures.TRAIN_DP in signatures.of_plan(plan):
        shares = noise_specs(computation.layout)
        functions[signatures.TRAIN_DP] = _concrete(
            lambda batch, weight, learning_rate, sensitivity, noise, random=None: {
                "done": computation.train_dp_batch(
                    batch, weight, learning_rate, sensitivity, [noise[n] for n in shares], random
                )
            },
            *_step_specs(computation, batch_size),
            _scalar("sensitivity"),
            shares,
            *random_specs(computation.interface, batch_size),
        )
    return functions


def _train(computation: ClientComputation, batch_size: int) -> Any:
    """The signature `train`."""
    return _concrete(
        lambda batch, weight, learning_rate, random=None: {
            "loss": computation.train_batch(batch, weight, learning_rate, random)
        },
        *_step_specs(computation, batch_size),
        *random_specs(computation.interface, batch_size),
    )


def _step_specs(computation: ClientComputation, batch_size: int) -> list[Any]:
    return [
        tensor_specs(computation.interface.tensors, batch_size),
        tf.TensorSpec([batch_size], tf.float32, "weight"),
        _scalar("learning_rate"),
    ]


def _scalar(name: str) -> tf.TensorSpec:
    return tf.TensorSpec([], tf.float32, name)


def tensor_specs(
    tensors: Sequence[ExampleTensor], batch_size: int | None
) -> dict[str, tf.TensorSpec]:
    """Name -> spec of a batch of `tensors`."""
    return {
        tensor.name: tf.TensorSpec([batch_size, *tensor.shape], tensor.dtype, tensor.name)
        for tensor in tensors
    }


def random_specs(interface: ExampleInterface, batch_size: int) -> list[tf.TensorSpec]:
    """The spec of the input `random` where the model has random layers."""
    values = interface.random_values
    return [tf.TensorSpec([batch_size, values], tf.float32, "random")] if values else []


def noise_specs(layout: TensorLayout) -> dict[str, tf.TensorSpec]:
    """Name -> spec of the noise of each variable, in the layout's order."""
    names = signatures.noise_inputs(layout.shapes)
    return {name: tf.TensorSpec(shape, tf.float32, name) for name, shape in names.items()}


def infer_signature(infer: Callable[[Any], Any], inputs: Sequence[ExampleTensor]) -> Any:
    """The signature `infer` (any number of examples) of a function of `inputs` by name."""
    return _concrete(lambda batch: {"logits": infer(batch)}, tensor_specs(inputs, None))


def _concrete(function: Callable[..., Any], *specs: Any) -> Any:
    """`function` traced without autograph.

    The computation has no Python control flow on tensors, and autograph would
    rewrite the exceptions of gradient rules.
    """
    return tf.function(function, autograph=False).get_concrete_function(*specs)
