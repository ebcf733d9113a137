"""Flower's simulation runtime (Ray) with PyTorch and its server-side fixed clipping."""

from __future__ import annotations

import os
import threading

from workload import BATCH, CLIP_NORM, EXAMPLES, NOISE_MULTIPLIER, POPULATION, RATE

# Flower keeps a record for each of these; the cohort is drawn from them.
SUPERNODES = 100


def flower(workload, rounds) -> None:
    """User level only; every supernode has ten of the population's users in turn."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    import flwr.simulation
    from flwr.app import ArrayRecord, ConfigRecord
    from flwr.clientapp import ClientApp
    from flwr.serverapp import ServerApp
    from flwr.serverapp.strategy import DifferentialPrivacyServerSideFixedClipping, FedAvg
    from torch_nets import NETS

    if workload.unit != "user":
        raise ValueError("Flower is run for the unit user")
    name, folder = workload.model, str(workload.folder)
    server, client = ServerApp(), ClientApp()

    @client.train()
    def train(message, context):
        return _train(message, context, name, folder)

    ended = threading.Event()

    @server.main()
    def main(grid, context):
        strategy = DifferentialPrivacyServerSideFixedClipping(
            FedAvg(
                fraction_train=workload.users / SUPERNODES,
                fraction_evaluate=0.0,
                min_available_nodes=SUPERNODES,
            ),
            noise_multiplier=NOISE_MULTIPLIER,
            clipping_norm=CLIP_NORM,
            num_sampled_clients=workload.users,
        )

        def turn(server_round, arrays):
            # Called before the first round (0) and after each.
            done = object()
            if next(rounds, done) is done:
                ended.set()
                raise _NoMoreRounds
            return

        strategy.start(
            grid=grid,
            initial_arrays=ArrayRecord(NETS[name]().state_dict()),
            num_rounds=10**6,
            train_config=ConfigRecord({"lr": RATE}),
            evaluate_fn=turn,
        )

    try:
        flwr.simulation.run_simulation(
            server_app=server,
            client_app=client,
            num_supernodes=SUPERNODES,
            backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0.0}},
        )
    except Exception:
        if not ended.is_set():
            raise


class _NoMoreRounds(Exception):
    """Ends Flower's loop of rounds."""


_data = {}


def _train(message, context, name, folder):
    """One user's training in a Ray worker, which keeps the data mapped."""
    import numpy as np
    import torch
    from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
    from torch_nets import NETS

    if not _data:
        torch.set_num_threads(1)
        parent = os.path.dirname(folder)
        _data["x"] = np.load(os.path.join(parent, "x.npy"), mmap_mode="r")
        _data["y"] = np.load(os.path.join(parent, "y.npy"))
        _data["net"] = NETS[name]()
    net = _data["net"]
    net.load_state_dict(message.content["arrays"].to_torch_state_dict())
    user = int(context.node_config["partition-id"]) * (POPULATION // SUPERNODES)
    x = torch.from_numpy(np.asarray(_data["x"][user], np.float32) / 255.0).permute(0, 3, 1, 2)
    y = torch.from_numpy(_data["y"][user]).long()
    optimizer = torch.optim.SGD(net.parameters(), RATE)
    for begin in range(0, EXAMPLES, BATCH):
        optimizer.zero_grad()
        logits = net(x[begin : begin + BATCH])
        torch.nn.functional.cross_entropy(logits, y[begin : begin + BATCH]).backward()
        optimizer.step()
    content = RecordDict(
        {
            "arrays": ArrayRecord(net.state_dict()),
            "metrics": MetricRecord({"num-examples": EXAMPLES}),
        }
    )
    return Message(content=content, reply_to=message)
