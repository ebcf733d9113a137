"""Which models are dense networks with a low-rank first layer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from tf_dpfl.client_work.computation import ClientComputation
from tf_dpfl.client_work.dense_users.replay import TracedGraph, uses_of
from tf_dpfl.client_work.per_example.positions import number_entries
from tf_dpfl.client_work.per_example.refusals import NoSoundRuleError
from tf_dpfl.client_work.per_example.sites import Site, find_sites
from tf_dpfl.protocol.plan import LocalTraining

# What a step costs beside its products: the kernel's gradient and value are read
# and written a few times, each about as long as so many multiplications.
_MULTIPLICATIONS_PER_ENTRY = 24

# Measured on a core with 2 MiB of cache: less leaves more to start, more to fetch.
_MOST_USERS = 32
_FLOATS_OF_A_BLOCK = 2**21

# Where weights meet the batch in a dense network: products and biases.
_OPS = {"MatMul": (1,), "BiasAdd": (1,), "AddV2": (0, 1), "Mul": (0, 1)}


class NotDenseError(Exception):
    """The model has to be trained user by user; the message says why."""


@dataclass(frozen=True)
class LowRankKernel:
    """A kernel [p, q] whose layer's input is the same at every step.

    `variable`: its index among the trained variables; `product`: the traced tensor
    input @ kernel; `inputs`: the layer's input [rows, p], in the graph of `prefix`.
    """

    variable: int
    product: tf.Tensor
    inputs: tf.Tensor


class DenseNet:
    """A model's losses, traced so that kernels and products can be replaced.

    Args:
      computation: of the model.
      settings: the plan's section.
      examples: the most examples that one user has.

    Raises:
      NotDenseError: the optimizer is not linear, a layer is not dense, or a low-rank
        first layer would save nothing.
    """

    def __init__(self, computation: ClientComputation, settings: LocalTraining, *, examples: int):
        if settings.optimizer not in ("sgd", "momentum"):
            raise NotDenseError(f"local_training.optimizer={settings.optimizer!r} is not linear")
        if settings.batch_size < 2:
            raise NotDenseError("batches of one example have nothing to gain")
        self.interface = computation.interface
        self.variables = computation.variables
        self.losses = TracedGraph(_trace_losses(computation, settings.batch_size))
        self.prefix = TracedGraph(_trace_prediction(computation))
        self.reads = [_reads(self.losses.graph, v) for v in self.variables]
        sites = _sites(self.losses.graph, self.variables, computation, settings.batch_size)
        worth = _Worth(settings, examples)
        self.low_rank = [
            kernel
            for kernel in map(self._low_rank_kernel, sites)
            if kernel is not None and worth.low_rank(*self.variables[kernel.variable].shape)
        ]
        if not self.low_rank:
            raise NotDenseError(
                "no dense layer on the inputs themselves is large enough to gain by its low rank"
            )
        taken = {kernel.variable for kernel in self.low_rank}
        self.others = [i for i in range(len(self.variables)) if i not in taken]

    def batch_tensor(self, name: str) -> tf.Tensor:
        """What the tensor `name` of a batch, or "random", is fed to in `losses`."""
        names = [tensor.name for tensor in self.interface.tensors]
        return _fed(self.losses, [*names, *(["random"] if self.draws else [])], name)

    def input_tensor(self, name: str) -> tf.Tensor:
        """What the input `name` is fed to in `prefix`."""
        return _fed(self.prefix, [tensor.name for tensor in self.interface.inputs], name)

    @property
    def draws(self) -> bool:
        """Whether the model has random layers."""
        return self.interface.random_values > 0

    def _low_rank_kernel(self, site: Site) -> LowRankKernel | None:
        """The kernel at `site`, if its layer's input depends on no weight and no chance."""
        op = site.op
        if op.type != "MatMul":
            return None
        kernel = op.inputs[1]
        index = next((i for i, reads in enumerate(self.reads) if _is(kernel, reads)), None)
        if index is None or len(self.reads[index]) != 1 or len(kernel.consumers()) != 1:
            return None
        changing = [read for reads in self.reads for read in reads]
        if self.draws:
            changing.append(self.batch_tensor("random"))
        if op.inputs[0].ref() in uses_of(self.losses.graph, changing):
            return None
        try:
            twin = self.prefix.graph.get_operation_by_name(op.name)
        except KeyError:
            return None
        return LowRankKernel(index, op.outputs[0], twin.inputs[0])


@dataclass(frozen=True)
class _Worth:
    """Compares the multiplications of both ways, in units of n p q."""

    settings: LocalTraining
    examples: int

    def low_rank(self, p: int, q: int) -> bool:
        epochs, batch = self.settings.epochs, self.settings.batch_size
        direct = epochs * (2 + _MULTIPLICATIONS_PER_ENTRY / batch)
        # The product with the initial kernel and the clipped sum; the Gram matrix;
        # the corrections to every step's product.
        return direct > 2 + self.examples / q + epochs * self.examples / p


def _trace_losses(computation: ClientComputation, rows: int) -> Any:
    """The graph of the losses of a batch of `rows` examples in training."""
    values = computation.interface.random_values
    specs = {
        t.name: tf.TensorSpec([rows, *t.shape], t.dtype) for t in computation.interface.tensors
    }
    if values:
        specs["random"] = tf.TensorSpec([rows, values])

    def losses(batch: dict[str, tf.Tensor]) -> tf.Tensor:
        rest = dict(batch)
        random = rest.pop("random", None)
        return computation.example_losses(rest, random)

    return tf.function(losses, autograph=False).get_concrete_function(specs).graph


def _trace_prediction(computation: ClientComputation) -> Any:
    """The graph of the prediction for any number of rows.

    Up to a layer in front of which nothing is random it is that of training too.
    """
    specs = {t.name: tf.TensorSpec([None, *t.shape], t.dtype) for t in computation.interface.inputs}
    try:
        return tf.function(computation.infer, autograph=False).get_concrete_function(specs).graph
    except (TypeError, ValueError) as error:  # a layer that needs a fixed batch size
        raise NotDenseError("it cannot be traced for any number of rows") from error


def _fed(traced: TracedGraph, names: list[str], name: str) -> tf.Tensor:
    """The input `name` of a graph traced over a dictionary: its keys are sorted."""
    return traced.graph.inputs[sorted(names).index(name)]


def _reads(graph: Any, variable: tf.Variable) -> list[tf.Tensor]:
    handle = graph.capture(variable.handle)
    if any(c.type != "ReadVariableOp" for c in handle.consumers()):
        raise NotDenseError(f"{variable.name} is used in another way than as a dense layer's")
    return [op.outputs[0] for op in handle.consumers()]


def _sites(
    graph: Any, variables: list[tf.Variable], computation: ClientComputation, examples: int
) -> list[Site]:
    """Where weights meet the batch; refuses what is no dense network or mixes examples."""
    fed = len(computation.interface.tensors) + (computation.interface.random_values > 0)
    try:
        sites = find_sites(
            graph.get_operations(),
            batch=graph.inputs[:fed],
            weights={
                graph.capture(variable.handle).ref(): positions
                for variable, positions in zip(variables, number_entries(variables))
            },
            losses=graph.outputs[0],
            examples=examples,
        )
    except NoSoundRuleError as error:
        raise NotDenseError(str(error)) from error
    for site in sites:
        product = site.op.type == "MatMul"
        transposed = product and (
            site.op.get_attr("transpose_a") or site.op.get_attr("transpose_b")
        )
        if site.index not in _OPS.get(site.op.type, ()) or transposed:
            raise NotDenseError(f"{site.op.name} ({site.op.type}) is not a dense layer's")
    return sites


def _is(tensor: tf.Tensor, candidates: list[tf.Tensor]) -> bool:
    return any(tensor.ref() == candidate.ref() for candidate in candidates)


def users_of_a_block(net: DenseNet, *, examples: int, users: int) -> int:
    """How many users are trained at once: what fits a core's cache, 1 to 32.

    Args:
      net: the model.
      examples: the most that one user has.
      users: about how many there are; they are cut into even blocks.
    """
    floats = sum(math.prod(net.variables[i].shape) for i in net.others)
    for kernel in net.low_rank:
        p, q = net.variables[kernel.variable].shape
        floats += examples * (p + examples + 3 * q)
    most = max(1, min(_MOST_USERS, _FLOATS_OF_A_BLOCK // floats))
    return -(-users // -(-users // most))
