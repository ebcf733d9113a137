"""Gradients written in ops that have a TFLite builtin.

TensorFlow's own gradients of most ops (`ReluGrad`, `BiasAddGrad`,
`Conv2DBackpropFilter`, ...) exist in TFLite only through the Flex delegate,
which device interpreters do not carry. Here each op a model uses has a rule
that computes the same gradient from builtin ops.

To add a rule: write a function under `@gradient_of("OpType")` in the file of
its family (a new family: a new file, imported below), and a case to
`tests/export/test_gradient_rules.py`, which holds every rule to TensorFlow's.
A rule gets `(op, grad, ...)`, one gradient per output, and returns one gradient
per input (None where there is none). Shapes are static in a training graph; a
case a rule does not cover is refused with `shapes.refuse`.
"""

from tf_dpfl.export.gradients import (  # noqa: F401  importing a family registers its rules
    activations,
    arithmetic,
    arrays,
    convolution,
    functions,
    gathering,
    linear,
    normalization,
    pooling,
    rearranging,
    resizing,
)
from tf_dpfl.export.gradients.rules import NATIVE, op_gradients

__all__ = ["NATIVE", "op_gradients"]
