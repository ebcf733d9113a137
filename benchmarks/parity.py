"""Accuracy and epsilon of this simulation beside stock TFF, same plan and noise.

Every system runs in a process of its own, with the same initial weights, the
same cohorts and the same users' data for a seed; only the noise is drawn anew.
Stock TFF is `build_unweighted_fed_avg` with
`DifferentiallyPrivateFactory.gaussian_fixed`.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from tables import arguments, show, write_json

ROOT = Path(__file__).resolve().parent.parent
SYSTEMS = ("tf_dpfl, noise on devices", "tf_dpfl, noise on server", "stock TFF gaussian_fixed")


def run_ours(plan, seed, folder):
    """(accuracy, seconds per round) of `tf_dpfl.simulate`."""
    import tf_dpfl

    result = tf_dpfl.simulate(plan, folder, seed=seed)
    lines = (result.folder / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    # The first round traces, the evaluated ones evaluate.
    seconds = [r["seconds"] for r in records[1:] if "accuracy" not in r]
    return result.accuracy, statistics.median(seconds or [r["seconds"] for r in records])


def run_stock(plan, seed, data=None):
    """(accuracy, seconds per round) of stock TFF on the same cohorts, of `data` or the plan's."""
    import tensorflow as tf
    import tensorflow_federated as tff

    import tf_dpfl
    from tf_dpfl.simulation.cohort import derive_bytes, draw_cohort
    from tf_dpfl.simulation.evaluation import Evaluator
    from tf_dpfl.simulation.runtime import tff_runtime

    data = data or tf_dpfl.load_federated_data(plan)
    run_seed = derive_bytes(b"", f"seed {seed}")
    initial = int.from_bytes(derive_bytes(run_seed, "initial weights")[:4], "little")
    tf.keras.utils.set_random_seed(initial)
    model = tf_dpfl.build_model(plan.task.model, input_shape=data.input_shape, classes=data.classes)
    spec = (
        tf.TensorSpec([None, *data.input_shape], tf.float32),
        tf.TensorSpec([None], tf.int32),
    )
    aggregator = tff.aggregators.DifferentiallyPrivateFactory.gaussian_fixed(
        plan.privacy.noise_multiplier, plan.clients.clients_per_round, plan.privacy.clip_norm
    )
    local = plan.local_training
    momentum = local.momentum if local.optimizer == "momentum" else None
    server_momentum = plan.server.momentum if plan.server.optimizer == "momentum" else None
    process = tff.learning.algorithms.build_unweighted_fed_avg(
        lambda: tff.learning.models.from_keras_model(
            tf.keras.models.clone_model(model),
            loss=tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            input_spec=spec,
        ),
        client_optimizer_fn=tff.learning.optimizers.build_sgdm(local.learning_rate, momentum),
        server_optimizer_fn=tff.learning.optimizers.build_sgdm(
            plan.server.learning_rate, server_momentum
        ),
        model_aggregator=aggregator,
    )

    def dataset(user):
        x, y = data.client(int(user)).values()
        examples = tf.data.Dataset.from_tensor_slices((x, y))
        return examples.batch(local.batch_size).repeat(local.epochs)

    seconds = []
    with tff_runtime():
        state = process.initialize()
        weights = tff.learning.models.ModelWeights.from_model(model)
        state = process.set_model_weights(state, weights)
        for number in range(1, plan.server.rounds + 1):
            cohort = draw_cohort(plan.clients, run_seed=run_seed, round_number=number)
            began = time.monotonic()
            state = process.next(state, [dataset(user) for user in cohort]).state
            seconds.append(time.monotonic() - began)
        # Made eagerly: TFF's graph has switched the layers' classes to TF 1.
        model = tf.keras.models.clone_model(model)
        process.get_model_weights(state).assign_weights_to(model)
    figures = Evaluator(model, data, plan.local_training).evaluate()
    return figures.accuracy, statistics.median(seconds[1:] or seconds)


def our_epsilon(plan):
    """Central epsilon of the plan as this project's accounting gives it."""
    from tf_dpfl.privacy.accounting import central_epsilon
    from tf_dpfl.privacy.mechanism import mechanism_of_plan

    mechanism = mechanism_of_plan(plan, rounds=plan.server.rounds)
    return central_epsilon([mechanism], delta=plan.privacy.delta)


def stock_epsilon(plan):
    """The same by dp_accounting alone: the event of stock TFF's aggregator, sampled."""
    import dp_accounting
    from dp_accounting import pld

    if plan.clients.sampling != "poisson":
        return float("nan")
    noise = dp_accounting.GaussianDpEvent(plan.privacy.noise_multiplier)
    event = dp_accounting.PoissonSampledDpEvent(plan.clients.sampling_probability, noise)
    accountant = pld.PLDAccountant()
    accountant.compose(event, plan.server.rounds)
    return accountant.get_epsilon(plan.privacy.delta)


def one(system, plan_file, seed, rounds):
    """Runs one system for one seed and prints one JSON object."""
    import tf_dpfl

    place = "server" if system == SYSTEMS[1] else "device"
    overrides = [f"privacy.noise={place}"] + ([f"server.rounds={rounds}"] if rounds else [])
    plan = tf_dpfl.calibrate_plan(tf_dpfl.load_plan(plan_file, overrides=overrides))
    with tempfile.TemporaryDirectory() as folder:
        accuracy, seconds = (
            run_stock(plan, seed)
            if system == SYSTEMS[2]
            else run_ours(plan, seed, Path(folder) / "run")
        )
    epsilon = stock_epsilon(plan) if system == SYSTEMS[2] else our_epsilon(plan)
    print(json.dumps({"accuracy": accuracy, "seconds": seconds, "epsilon": epsilon}))


def main() -> int:
    """Prints the table over all systems and seeds."""
    parser = arguments(__doc__)
    parser.add_argument("--plan", default=str(ROOT / "examples" / "fashion_mnist.toml"))
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds (default 3)")
    parser.add_argument("--rounds", type=int, default=0, help="fewer rounds than the plan's")
    parser.add_argument("--one", nargs=2, metavar=("SYSTEM", "SEED"), help="internal")
    args = parser.parse_args()
    if args.one:
        one(args.one[0], args.plan, int(args.one[1]), args.rounds)
        return 0
    rows = []
    for system in SYSTEMS:
        runs = [_in_own_process(system, seed, args) for seed in range(1, args.seeds + 1)]
        accuracies = [run["accuracy"] for run in runs]
        rows.append(
            {
                "system": system,
                "workload": f"{Path(args.plan).stem}, {args.seeds} seeds",
                "accuracy_mean": statistics.mean(accuracies),
                "accuracy_min": min(accuracies),
                "accuracy_max": max(accuracies),
                "central_epsilon": runs[0]["epsilon"],
                "seconds_per_round": statistics.median(run["seconds"] for run in runs),
            }
        )
    stock = rows[-1]
    for row in rows:
        row["points_from_stock"] = 100 * (row["accuracy_mean"] - stock["accuracy_mean"])
        row["times_stocks_speed"] = stock["seconds_per_round"] / row["seconds_per_round"]
    show(rows)
    write_json(rows, args.json)
    return 0


def _in_own_process(system, seed, args):
    command = [sys.executable, __file__, "--plan", args.plan, "--rounds", str(args.rounds)]
    with tempfile.TemporaryFile("w+") as output:
        subprocess.run([*command, "--one", system, str(seed)], stdout=output, check=True)
        output.seek(0)
        result = json.loads(output.read().splitlines()[-1])
    print(f"{system}, seed {seed}: {result}", file=sys.stderr, flush=True)
    return result


if __name__ == "__main__":
    raise SystemExit(main())
