"""Convolutions as products of matrices, which interpreters run with wide vectors.

What all windows meet is a matrix (`windows`), and a convolution is its product with the
kernel, forward, for the gradient of the image and, example by example, for the kernel's
(`patch_products`). `wide_windows` makes these products wide enough, `minimal_filtering`
fewer where kernels have three rows; `convolution` chooses. All of it is written over
`image_ops`, for tensors that TensorFlow traces and for files that are rewritten.
"""

from tf_dpfl.client_work.convolutions.convolution import (
    convolved,
    kernel_products,
    smaller_kernel_products,
)
from tf_dpfl.client_work.convolutions.windows import Axis, patches

__all__ = ["Axis", "convolved", "kernel_products", "patches", "smaller_kernel_products"]
