"""Rewriting a converted file into equal ops that device interpreters run faster.

Some builtin ops are many times slower than others that compute the same: a
subtraction that broadcasts takes 25 times an addition that does
(tflite-runtime 2.14), a convolution with a kernel that is no constant runs
without wide vectors, and so on. Gradient rules, losses and Keras itself are
written for reading; what is slow is replaced here, once, in the file.

To add a rewrite: a function under `@rewrite_of("OP")` in the file of its family
(a new family: a new file, imported below), with the measured gain beside it, and
a case to `tests/export/test_tuning.py`, which holds every rewrite to the original
op in the interpreter.
"""

from __future__ import annotations

from tf_dpfl.export.tuning import (  # noqa: F401  importing a family registers its rewrites
    arrays,
    convolution,
    elementwise,
    products,
    reductions,
)
from tf_dpfl.export.tuning.file import pack, subgraphs_of, unpack
from tf_dpfl.export.tuning.order import put_first
from tf_dpfl.export.tuning.reshaping import spare_copies
from tf_dpfl.export.tuning.rewrites import rewrite
from tf_dpfl.export.tuning.sharing import drop_unused, share


def tune(content: bytes, *, primary: str | None = None) -> bytes:
    """The TFLite file `content` with the same signatures, computing the same faster.

    `primary` becomes the one that interpreters run best (`order.put_first`).

    Ops on tensors with open sizes (an open batch) are left as they are.
    """
    file = unpack(content)
    for graph in subgraphs_of(file):
        rewrite(graph)
        share(graph)
        spare_copies(graph)
    drop_unused(file)
    if primary is not None:
        put_first(file, primary)
    return pack(file)
