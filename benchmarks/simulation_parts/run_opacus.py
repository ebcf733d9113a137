"""Example-level DP-SGD of every user by Opacus, in a plain PyTorch loop over users."""

from __future__ import annotations

from workload import BATCH, CLIP_NORM, EXAMPLES, NOISE_MULTIPLIER, RATE


def opacus(workload, rounds) -> None:
    """The unit example; the model is loaded anew for every user."""
    import torch
    from opacus import GradSampleModule
    from opacus.optimizers import DPOptimizer
    from torch_nets import NETS, tensors

    images, labels = tensors(workload)
    module = GradSampleModule(NETS[workload.model]())
    optimizer = DPOptimizer(
        torch.optim.SGD(module.parameters(), RATE),
        noise_multiplier=NOISE_MULTIPLIER,
        max_grad_norm=CLIP_NORM,
        expected_batch_size=BATCH,
    )
    weights = list(module.parameters())
    loss = torch.nn.CrossEntropyLoss()
    for cohort, _ in zip(workload.cohorts(), rounds):
        start = [w.detach().clone() for w in weights]
        total = [torch.zeros_like(w) for w in weights]
        for user in cohort:
            with torch.no_grad():
                for w, s in zip(weights, start):
                    w.copy_(s)
            for begin in range(0, EXAMPLES, BATCH):
                optimizer.zero_grad()
                x = images[user, begin : begin + BATCH]
                loss(module(x), labels[user, begin : begin + BATCH]).backward()
                optimizer.step()
            with torch.no_grad():
                for t, w, s in zip(total, weights, start):
                    t += w - s
        with torch.no_grad():
            for w, s, t in zip(weights, start, total):
                w.copy_(s + t / workload.users)
