"""The geometry that convolution and pooling share.

Images are [batch, height, width, channels] with static shapes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from tf_dpfl.client_work.convolutions.windows import Axis
from tf_dpfl.export.gradients.shapes import refuse, static_shape


@dataclass(frozen=True)
class Window:
    """A sliding window over height and width."""

    rows: Axis
    columns: Axis

    @classmethod
    def of(
        cls, op: Any, *, kernel: tuple[int, int], image: Any = None, result: Any = None
    ) -> Window:
        """The window of a convolution or pooling op with static shapes.

        It goes from `image` to `result`; by default from the op's first input to
        its output.
        """
        if op.get_attr("data_format") != b"NHWC":
            refuse(op, "only channels_last has a gradient rule")
        padding = op.get_attr("padding").decode()
        if padding not in ("SAME", "VALID"):
            refuse(op, f"padding {padding} has no gradient rule; use VALID behind tf.pad")
        strides = op.get_attr("strides")
        dilations = op.get_attr("dilations") if "dilations" in op.node_def.attr else (1, 1, 1, 1)
        inputs = static_shape(op.inputs[0] if image is None else image)
        outputs = static_shape(op.outputs[0] if result is None else result)
        axes = []
        for axis in (1, 2):
            extent = (kernel[axis - 1] - 1) * dilations[axis] + 1
            total = max((outputs[axis] - 1) * strides[axis] + extent - inputs[axis], 0)
            axes.append(
                Axis(
                    size=inputs[axis],
                    outputs=outputs[axis],
                    kernel=kernel[axis - 1],
                    stride=strides[axis],
                    dilation=dilations[axis],
                    before=total // 2 if padding == "SAME" else 0,
                )
            )
        return cls(*axes)

    def pad(self, image: Any, *, value: float = 0.0) -> Any:
        """`image` with the window's padding added (or unread pixels cut off)."""
        rows, columns = self.rows, self.columns
        return pad_or_crop(
            image,
            rows=(rows.before, rows.after),
            columns=(columns.before, columns.after),
            value=value,
        )

    def unpad(self, padded: Any) -> Any:
        """Undoes `pad` on a gradient: unread pixels get zero."""
        rows, columns = self.rows, self.columns
        return pad_or_crop(
            padded,
            rows=(-rows.before, -rows.after),
            columns=(-columns.before, -columns.after),
        )

    @property
    def is_plain(self) -> bool:
        """Whether no axis has both a stride and a dilation."""
        return all(min(axis.stride, axis.dilation) == 1 for axis in (self.rows, self.columns))

    def taps(self) -> list[tuple[int, int]]:
        """All positions in the kernel, row by row."""
        return [(i, j) for i in range(self.rows.kernel) for j in range(self.columns.kernel)]

    @property
    def is_tiling(self) -> bool:
        """Whether windows lie side by side, so that each pixel is in one of them."""
        axes = (self.rows, self.columns)
        return all(axis.kernel == axis.stride and axis.dilation == 1 for axis in axes)

    def read(self, padded: Any, tap: tuple[int, int]) -> Any:
        """What one position of the kernel meets: [batch, outputs, outputs, channels]."""
        rows, columns = self.rows, self.columns
        if self.is_tiling:
            batch, _, _, channels = static_shape(padded)
            tiles = [batch * rows.outputs, rows.kernel, columns.outputs, columns.kernel * channels]
            first = tap[1] * channels
            read = tf.reshape(padded, tiles)[:, tap[0], :, first : first + channels]
            return tf.reshape(read, [batch, rows.outputs, columns.outputs, channels])
        if (rows.stride, columns.stride) == (1, 1):
            return padded[:, rows.reads(tap[0]), columns.reads(tap[1]), :]
        # By copying whole rows and pixels: LiteRT's slices with a step are 10 times slower.
        return tf.gather(
            tf.gather(padded, rows.places(tap[0]), axis=1), columns.places(tap[1]), axis=2
        )

    def spread_full(self, grad: Any) -> Any:
        """`grad` of the outputs with zeros between (stride) and around.

        A window of stride 1 over the result gives the padded image's size.
        """
        rows, columns = self.rows, self.columns
        spread = _insert_zeros(grad, rows=rows.stride, columns=columns.stride)
        return pad_or_crop(
            spread,
            rows=(rows.extent - 1, rows.padded - rows.outputs * rows.stride),
            columns=(columns.extent - 1, columns.padded - columns.outputs * columns.stride),
        )

    def placed(self, values: Sequence[Any]) -> Any:
        """The transpose of `read`: the sum of the values of all taps at their pixels."""
        rows, columns = self.rows, self.columns
        if not self.is_tiling:
            return tf.add_n([self._placed(part, tap) for part, tap in zip(values, self.taps())])
        batch, _, _, channels = static_shape(values[0])
        flat = [
            tf.reshape(part, [batch * rows.outputs, 1, columns.outputs, channels])
            for part in values
        ]
        lines = [
            tf.concat(flat[first : first + columns.kernel], axis=3)
            for first in range(0, len(flat), columns.kernel)
        ]
        return tf.reshape(tf.concat(lines, axis=1), [batch, rows.padded, columns.padded, channels])

    def _placed(self, values: Any, tap: tuple[int, int]) -> Any:
        rows, columns = self.rows, self.columns
        spread = _insert_zeros(values, rows=rows.stride, columns=columns.stride)
        top, left = tap[0] * rows.dilation, tap[1] * columns.dilation
        return pad_or_crop(
            spread,
            rows=(top, rows.padded - top - rows.outputs * rows.stride),
            columns=(left, columns.padded - left - columns.outputs * columns.stride),
        )


@dataclass(frozen=True)
class Blocks:
    """One axis of an image in blocks of the stride's size, as a window's gradient sees it.

    `outputs` is a window over the window's outputs, one place for each block;
    `taps` its kernel; `surplus` what its pixels must be padded (or, negative, cut)
    by on either side to be the image.
    """

    size: int
    taps: int
    outputs: Axis
    surplus: tuple[int, int]

    @classmethod
    def of(cls, axis: Axis) -> Blocks:
        """The blocks of the image of `axis`, which has not both stride and dilation."""
        taps = -(-axis.kernel // axis.stride)
        first, last = axis.before // axis.stride, (axis.before + axis.size - 1) // axis.stride
        cut = axis.before - first * axis.stride
        return cls(
            size=axis.stride,
            taps=taps,
            outputs=Axis(
                size=axis.outputs,
                outputs=last - first + 1,
                kernel=taps,
                stride=1,
                dilation=axis.dilation,
                before=(taps - 1) * axis.dilation - first,
            ),
            surplus=(-cut, cut + axis.size - (last - first + 1) * axis.stride),
        )

    def tap_of(self) -> NDArray[np.int32]:
        """[taps, size]: the kernel's position that leads to each pixel of a block."""
        starts = np.arange(self.taps - 1, -1, -1) * self.size
        return np.asarray(starts[:, np.newaxis] + np.arange(self.size), np.int32)


def pad_or_crop(
    image: Any,
    *,
    rows: tuple[int, int],
    columns: tuple[int, int],
    axis: int = 1,
    value: float = 0.0,
) -> Any:
    """Pads by positive and crops by negative amounts at the four sides.

    Rows are axis `axis` of the four of `image`, columns the next one.
    """
    sizes = static_shape(image)
    if min(*rows, *columns) < 0:
        cut = [slice(None)] * 4
        for number, (first, last) in ((axis, rows), (axis + 1, columns)):
            cut[number] = slice(max(-first, 0), sizes[number] - max(-last, 0))
        image = image[tuple(cut)]
    padding = [(0, 0)] * 4
    padding[axis], padding[axis + 1] = ((max(a, 0), max(b, 0)) for a, b in (rows, columns))
    if not any(sum(pair) for pair in padding):
        return image
    return tf.pad(image, padding, constant_values=value)


def _insert_zeros(image: Any, *, rows: int, columns: int) -> Any:
    """Puts `rows` - 1 zeros behind every row and `columns` - 1 behind every column.

    By padding the innermost axis of a reshaped image: one PAD a side.
    """
    batch, height, width, channels = static_shape(image)
    if columns > 1:
        image = tf.reshape(image, [batch, height * width, 1, channels])
        image = tf.pad(image, [(0, 0), (0, 0), (0, columns - 1), (0, 0)])
        width *= columns
        image = tf.reshape(image, [batch, height, width, channels])
    if rows > 1:
        image = tf.reshape(image, [batch, height, 1, width * channels])
        image = tf.pad(image, [(0, 0), (0, 0), (0, rows - 1), (0, 0)])
        image = tf.reshape(image, [batch, height * rows, width, channels])
    return image
