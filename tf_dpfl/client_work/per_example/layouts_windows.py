"""Which convolutions, poolings and normalisations keep examples apart."""

from __future__ import annotations

from typing import Any

from tf_dpfl.client_work.per_example.layouts import Layout, Layouts, keeps_examples_apart
from tf_dpfl.client_work.per_example.refusals import refuse


@keeps_examples_apart(
    *"Conv2D DepthwiseConv2dNative MaxPool AvgPool ResizeBilinear SpaceToDepth DepthToSpace".split()
)
def _image(op: Any, layouts: Layouts) -> Layout:
    layout = layouts[0]
    if layout is None or layout.axis != 0 or any(layouts[1:]):
        refuse(op, "the images of a batch must be on its first axis and kernels be weights")
    if "ksize" in op.node_def.attr and op.get_attr("ksize")[0] != 1:
        refuse(op, "it pools over the batch, which mixes examples")
    return layout


@keeps_examples_apart("Conv2DBackpropInput")
def _transposed_convolution(op: Any, layouts: Layouts) -> Layout:
    layout = layouts[2]
    if layout is None or layout.axis != 0 or any(layouts[:2]):
        refuse(op, "the images of a batch must be on its first axis and kernels be weights")
    return layout


@keeps_examples_apart("FusedBatchNormV3")
def _normalization(op: Any, layouts: Layouts) -> Layout:
    """Statistics are of a channel over everything else."""
    channel = 1 if op.get_attr("data_format") == b"NCHW" else 3
    layout = layouts[0]
    if layout is None or any(layouts[1:]):
        refuse(op, "its scale or offset depends on the batch")
    if op.get_attr("is_training") and layout.axis != channel:
        refuse(op, "it normalises over the batch, which mixes examples")
    return layout
