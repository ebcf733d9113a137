"""pfl (pfl-research) with PyTorch and its central Gaussian mechanism."""

from __future__ import annotations

from workload import BATCH, CLIP_NORM, NOISE_MULTIPLIER, RATE


def pfl(workload, rounds) -> None:
    """User level only."""
    import torch
    from pfl.aggregate.simulate import SimulatedBackend
    from pfl.algorithm.base import NNAlgorithmParams
    from pfl.algorithm.federated_averaging import FederatedAveraging
    from pfl.callback.base import TrainingProcessCallback
    from pfl.data.dataset import Dataset
    from pfl.data.federated_dataset import FederatedDataset
    from pfl.hyperparam import NNTrainHyperParams
    from pfl.metrics import Metrics
    from pfl.model.pytorch import PyTorchModel
    from pfl.privacy.gaussian_mechanism import GaussianMechanism
    from pfl.privacy.privacy_mechanism import CentrallyAppliedPrivacyMechanism
    from torch_nets import NETS, tensors

    if workload.unit != "user":
        raise ValueError("pfl is run for the unit user")
    images, labels = tensors(workload)

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = NETS[workload.model]()

        def loss(self, x, y, eval=False):
            self.train(not eval)
            return torch.nn.functional.cross_entropy(self.net(x), y)

        @torch.no_grad()
        def metrics(self, x, y, eval=False):
            return {}

    net = Net()
    model = PyTorchModel(net, torch.optim.SGD, torch.optim.SGD(net.parameters(), lr=1.0))
    users = iter(user for cohort in workload.cohorts() for user in cohort)
    data = FederatedDataset(
        lambda u: Dataset([images[u], labels[u]], user_id=str(u)), lambda: int(next(users))
    )
    noise = GaussianMechanism(CLIP_NORM, NOISE_MULTIPLIER)
    backend = SimulatedBackend(data, data, [CentrallyAppliedPrivacyMechanism(noise)])

    class Turns(TrainingProcessCallback):
        def after_central_iteration(self, aggregate_metrics, model, *, central_iteration):
            done = object()
            return next(rounds, done) is done, Metrics()

    next(rounds)
    FederatedAveraging().run(
        NNAlgorithmParams(
            central_num_iterations=10**9,
            evaluation_frequency=10**9,
            train_cohort_size=workload.users,
            val_cohort_size=0,
        ),
        backend,
        model,
        NNTrainHyperParams(local_num_epochs=1, local_learning_rate=RATE, local_batch_size=BATCH),
        None,
        [Turns()],
    )
