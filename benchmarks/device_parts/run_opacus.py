"""DP-SGD in PyTorch by Opacus: gradients of every example, and its ghost clipping."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from opacus import GradSampleModule
from opacus.grad_sample import GradSampleModuleFastGradientClipping
from opacus.optimizers import DPOptimizer, DPOptimizerFastGradientClipping
from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping
from torch_models import MODELS

RATE, CLIP_NORM = 0.01, 1.0


def opacus(folder: Path) -> Callable[[], object]:
    """One step with `GradSampleModule`, without noise."""
    model, x, y = _load(folder)
    module = GradSampleModule(model)
    optimizer = DPOptimizer(
        torch.optim.SGD(module.parameters(), RATE),
        noise_multiplier=0.0,
        max_grad_norm=CLIP_NORM,
        expected_batch_size=len(y),
    )
    return _step(module, optimizer, torch.nn.CrossEntropyLoss(), x, y)


def opacus_ghost(folder: Path) -> Callable[[], object]:
    """One step with ghost clipping, without noise: two backward passes, no stored gradients."""
    model, x, y = _load(folder)
    module = GradSampleModuleFastGradientClipping(model, max_grad_norm=CLIP_NORM)
    optimizer = DPOptimizerFastGradientClipping(
        torch.optim.SGD(module.parameters(), RATE),
        noise_multiplier=0.0,
        max_grad_norm=CLIP_NORM,
        expected_batch_size=len(y),
    )
    loss = DPLossFastGradientClipping(module, optimizer, torch.nn.CrossEntropyLoss())
    return _step(module, optimizer, loss, x, y)


def _load(folder: Path) -> tuple[torch.nn.Module, torch.Tensor, torch.Tensor]:
    torch.set_num_threads(1)
    with np.load(folder / "batch.npz") as batch:
        x, y = batch["x"], batch["y"]
    # Images: channels first.
    x = np.ascontiguousarray(np.moveaxis(x, -1, 1)) if x.ndim == 4 else x
    model = MODELS[folder.name.split("-")[0]]()
    return model, torch.from_numpy(x), torch.from_numpy(y).long()


def _step(module, optimizer, loss, x, y) -> Callable[[], object]:
    def step():
        optimizer.zero_grad()
        loss(module(x), y).backward()
        optimizer.step()

    return step
