"""The geometry that convolution and pooling share.

Images are [batch, height, width, channels] with static shapes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from tf_dpfl.export.gradients.shapes import refuse, static_shape


@dataclass(frozen=True)
class Axis:
    """One axis of a sliding window: sizes in pixels.

    `before` is the padding in front of the image; `after`, behind it, is
    negative where the last pixels are in no window.
    """

    size: int
    outputs: int
    kernel: int
    stride: int
    dilation: int
    before: int

    @property
    def extent(self) -> int:
        """Pixels from the first to the last a window reads."""
        return (self.kernel - 1) * self.dilation + 1

    @property
    def padded(self) -> int:
        """Pixels that all windows together read, padding included."""
        return (self.outputs - 1) * self.stride + self.extent

    @property
    def after(self) -> int:
        """Padding behind the image; negative: pixels cut off."""
        return self.padded - self.size - self.before

    def reads(self, tap: int) -> slice:
        """The padded pixels that position `tap` of the kernel meets."""
        start = tap * self.dilation
        return slice(start, start + (self.outputs - 1) * self.stride + 1, self.stride)


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
            refuse(op, f"padding {padding} has no gradient rule")
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

    def taps(self) -> list[tuple[int, int]]:
        """All positions in the kernel, row by row."""
        return [(i, j) for i in range(self.rows.kernel) for j in range(self.columns.kernel)]

    def read(self, padded: Any, tap: tuple[int, int]) -> Any:
        """What one position of the kernel meets: [batch, outputs, outputs, channels]."""
        return padded[:, self.rows.reads(tap[0]), self.columns.reads(tap[1]), :]

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

    def place(self, values: Any, tap: tuple[int, int]) -> Any:
        """The transpose of `read`: `values` at the pixels of `tap`, zeros elsewhere."""
        rows, columns = self.rows, self.columns
        spread = _insert_zeros(values, rows=rows.stride, columns=columns.stride)
        top, left = tap[0] * rows.dilation, tap[1] * columns.dilation
        return pad_or_crop(
            spread,
            rows=(top, rows.padded - top - rows.outputs * rows.stride),
            columns=(left, columns.padded - left - columns.outputs * columns.stride),
        )


def pad_or_crop(
    image: Any, *, rows: tuple[int, int], columns: tuple[int, int], value: float = 0.0
) -> Any:
    """Pads by positive and crops by negative amounts at the four sides."""
    _, height, width, _ = static_shape(image)
    if min(*rows, *columns) < 0:
        image = image[
            :,
            max(-rows[0], 0) : height - max(-rows[1], 0),
            max(-columns[0], 0) : width - max(-columns[1], 0),
            :,
        ]
    padding = [(0, 0)] + [(max(a, 0), max(b, 0)) for a, b in (rows, columns)] + [(0, 0)]
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
