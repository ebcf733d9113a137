"""The plan as frozen dataclasses: what is trained, on whom, and how privately.

One plan is read by the simulation, the exporter, the server and (inside the
manifest) by every device. Settings that change privacy (`Clients`, `Privacy`,
`Server.rounds`) never share a dataclass with settings that change speed
(`Simulation`). `plan_files` reads and writes them as TOML.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from tf_dpfl.protocol import adaptive_clipping
from tf_dpfl.protocol.checks import choice, flag, integer, integers, number, text
from tf_dpfl.protocol.contradictions import contradictions
from tf_dpfl.protocol.errors import PlanError
from tf_dpfl.protocol.losses import SPARSE_LOSS
from tf_dpfl.protocol.sections import read_section, shown_key
from tf_dpfl.protocol.tuning_section import UNSTATED, Tuning

PLAN_VERSION = 1

# More is a slip of the pen, and would overflow: training counts a client's steps
# (epochs times examples) in int32, and the accountant takes so many rounds.
_MOST_CLIENTS = 10**9
_MOST_EXAMPLES_PER_CLIENT = 10**5
_MOST_EPOCHS = 10**4
_MOST_ROUNDS = 10**9

# The ranges keep noise and clipping factors normal, finite float32 numbers.
SMALLEST_CLIP_NORM = 1e-9
CLIP_NORMS_BELOW = 1e12
NOISE_MULTIPLIERS_BELOW = 1e6

# What float32 holds as a normal, finite number.
_SMALLEST_RATE = 1e-30
_RATES_BELOW = 1e12


@dataclass(frozen=True)
class Task:
    """The model: a name of the registry (`models`) or `package.module:function`."""

    model: str = text()


@dataclass(frozen=True)
class Data:
    """Where examples come from and how they are split over clients.

    `source` "folder" is one `.npz` (arrays `x`, `y`) per client in `path`;
    "csv" is one file at `path` with the named client and label columns, every
    other column a feature, reshaped to `feature_shape`; "store" is a folder that
    `dpfl data store` made of any of them, with its test split. `test_path` is a
    `.npz` with `x`, `y` for evaluation; it never reaches a client.
    """

    source: str = choice("digits", "fashion_mnist", "folder", "csv", "store")
    path: str = text(default="")
    test_path: str = text(default="")
    partition: str = choice("iid", "dirichlet", "shards", "natural", default="iid")
    partition_seed: int = integer(at_least=0, default=0)
    dirichlet_alpha: float = number(above=0, default=0.3)
    shards_per_client: int = integer(at_least=1, default=2)
    client_column: str = text(default="client")
    label_column: str = text(default="label")
    feature_shape: tuple[int, ...] = integers(at_least=1, default=())


@dataclass(frozen=True)
class Clients:
    """Who takes part: `sampling` "poisson" invites each client of the
    `population` with probability clients_per_round / population, "fixed" draws
    exactly `clients_per_round` without replacement, "min_separation" takes
    `clients_per_round` of those that were in none of the last `separation` - 1
    rounds. Of each client at most `examples_per_client` examples are used.
    """

    population: int = integer(at_least=1, at_most=_MOST_CLIENTS)
    clients_per_round: int = integer(at_least=1, at_most=_MOST_CLIENTS)
    examples_per_client: int = integer(at_least=1, at_most=_MOST_EXAMPLES_PER_CLIENT)
    sampling: str = choice("poisson", "fixed", "min_separation")

    @property
    def sampling_probability(self) -> float:
        """Probability that one client is in one round's cohort, in (0, 1]."""
        return self.clients_per_round / self.population

    @property
    def separation(self) -> int:
        """Rounds from one participation of a client to its next, at least, under
        "min_separation": as many as leave a whole cohort to choose in every round.
        """
        return self.population // self.clients_per_round


OPTIMIZER_SLOTS = {"sgd": 0, "momentum": 1, "adam": 2}
"""Values that a local optimizer holds for each weight; adam has a step count besides."""


@dataclass(frozen=True)
class LocalTraining:
    """What one client does with its own examples, in the order they are stored.

    `loss` is a name of `LOSSES` or `package.module:function` of (y, prediction)
    that returns the loss of each example. `target` says what `y` holds: "auto"
    is class ids for sparse cross-entropy and values for everything else.
    `proximal` is FedProx' mu (Li et al. 1812.06127). With `optimizer_state` "keep"
    the optimizer goes on, in a client's next round, from its own momentum or
    moments and step count; with "reset" it starts anew each round.
    """

    epochs: int = integer(at_least=1, at_most=_MOST_EPOCHS)
    batch_size: int = integer(at_least=1, at_most=_MOST_EXAMPLES_PER_CLIENT)
    learning_rate: float = number(at_least=_SMALLEST_RATE, below=_RATES_BELOW)
    optimizer: str = choice(*OPTIMIZER_SLOTS, default="sgd")
    momentum: float = number(at_least=0, below=1, default=0.9)
    beta_1: float = number(at_least=0, below=1, default=0.9)
    beta_2: float = number(at_least=0, below=1, default=0.999)
    epsilon: float = number(at_least=_SMALLEST_RATE, below=_RATES_BELOW, default=1e-7)
    proximal: float = number(at_least=0, below=_RATES_BELOW, default=0.0)
    optimizer_state: str = choice("reset", "keep", default="reset")
    loss: str = text(default="sparse_categorical_crossentropy")
    target: str = choice("auto", "class_ids", "values", default="auto")

    @property
    def keeps_state(self) -> bool:
        """Whether a client's optimizer goes on from its last round."""
        return self.optimizer_state == "keep"

    def kept_values(self, *, weights: int) -> int:
        """How many float32 values a client keeps between rounds, for so many weights."""
        if not self.keeps_state:
            return 0
        return OPTIMIZER_SLOTS[self.optimizer] * weights + (self.optimizer == "adam")

    @property
    def targets_are_class_ids(self) -> bool:
        """Whether `y` holds int32 class ids; float32 values otherwise."""
        if self.target == "auto":
            return self.loss == SPARSE_LOSS
        return self.target == "class_ids"


@dataclass(frozen=True)
class Privacy:
    """The mechanism. One of `noise_multiplier` and `target_epsilon`, or `target_local_epsilon`.

    `noise_multiplier` is a standard deviation divided by `clip_norm`. With `unit`
    "user" it is that of the noise on the sum of the clipped updates; with `noise`
    "device" each report carries variance (noise_multiplier * clip_norm)^2 /
    smallest_cohort. With `unit` "example" every local step is one of DP-SGD
    (Abadi et al. 1607.00133): `clip_norm` bounds each example's gradient, and the
    noise is that on the sum of the step's clipped gradients.

    `target_local_epsilon` is what one report of a device may cost against whoever sees it
    alone, at `delta`. The least noise that keeps to all targets is solved; a noise multiplier
    beside it must give it.

    `mechanism` says how the noise of different rounds hangs together: "gaussian",
    independent; "banded", a factorisation with `bands` bands (2306.08153; as many as
    rounds of separation if left out); "tree", tree aggregation (2103.00039). For these two
    `noise_multiplier` is that of each independent draw they are made of. "auto" is
    replaced, where `target_epsilon` is solved, by the one with the least error;
    `chosen_because` is its reason, for people.

    `clipping` says how an update is brought to `clip_norm`: scaled as a whole ("global"), each
    variable scaled ("per_layer") or each entry cut ("value"). `clip_norm` bounds the
    whole update's L2 norm in each of them (`protocol.clipping`).

    With `adaptive_clipping` (1905.03871) `clip_norm` is only where the clip norm starts: after
    each round it is multiplied by exp(-clip_learning_rate * (u - target_quantile)), u being
    the noised fraction of updates that were not clipped. `clip_count_stddev` is the deviation
    of the noise on their count (left out: a twentieth of `clients_per_round`), and
    `noise_multiplier` that of both releases together.
    """

    clip_norm: float = number(at_least=SMALLEST_CLIP_NORM, below=CLIP_NORMS_BELOW)
    delta: float = number(above=0, below=1)
    smallest_cohort: int = integer(at_least=1, at_most=_MOST_CLIENTS)
    unit: str = choice("user", "example", default="user")
    noise: str = choice("device", "server", default="device")
    noise_multiplier: float | None = number(
        at_least=0, below=NOISE_MULTIPLIERS_BELOW, optional=True, default=None
    )
    target_epsilon: float | None = number(above=0, optional=True, default=None)
    target_local_epsilon: float | None = number(above=0, optional=True, default=None)
    secure_aggregation: bool = flag(default=False)
    mechanism: str = choice("gaussian", "tree", "banded", "auto", default="gaussian")
    bands: int | None = integer(at_least=1, optional=True, default=None)
    chosen_because: str = text(default="")
    clipping: str = choice("global", "per_layer", "value", default="global")
    adaptive_clipping: bool = flag(default=False)
    target_quantile: float = number(above=0, below=1, default=0.5)
    clip_learning_rate: float = number(above=0, below=1e3, default=0.2)
    clip_count_stddev: float | None = number(at_least=0, below=1e9, optional=True, default=None)

    @property
    def is_correlated(self) -> bool:
        """Whether the noise of a round depends on that of earlier ones."""
        return self.mechanism in ("tree", "banded")

    @property
    def calibrated_noise_multiplier(self) -> float:
        """The noise multiplier; PlanError while only a target is known."""
        if self.noise_multiplier is None:
            raise PlanError(
                [
                    "privacy.noise_multiplier is not set: call "
                    "tf_dpfl.calibrate_plan(plan) to solve it from the plan's target epsilon"
                ]
            )
        return self.noise_multiplier


@dataclass(frozen=True)
class Server:
    """How the server turns averaged updates into the next model."""

    rounds: int = integer(at_least=1, at_most=_MOST_ROUNDS)
    learning_rate: float = number(at_least=_SMALLEST_RATE, below=_RATES_BELOW, default=1.0)
    optimizer: str = choice("sgd", "momentum", "adam", default="sgd")
    momentum: float = number(at_least=0, below=1, default=0.9)
    beta_1: float = number(at_least=0, below=1, default=0.9)
    beta_2: float = number(at_least=0, below=1, default=0.999)
    epsilon: float = number(at_least=_SMALLEST_RATE, below=_RATES_BELOW, default=1e-7)


@dataclass(frozen=True)
class Simulation:
    """Speed and bookkeeping of a simulation; nothing here changes privacy.

    `users_per_shard` is how many users of an expected cohort are trained in one
    piece; left out, it is what keeps every core of every worker busy. Checkpoints
    come every `checkpoint_every` rounds, or less often: they are put off while
    they would take more than a twentieth of the time.
    `records` "by_id": workers read examples from files (a store under the same path
    on each one's machine); "sent": rounds send them; "auto": by id where possible.
    """

    users_per_shard: int | None = integer(at_least=1, optional=True, default=None)
    evaluate_every: int = integer(at_least=1, default=10)
    checkpoint_every: int = integer(at_least=1, default=10)
    records: str = choice("auto", "by_id", "sent", default="auto")


@dataclass(frozen=True)
class Plan:
    """A whole plan. Built by `plan_from_dict` or `plan_files.load_plan`."""

    task: Task
    data: Data
    clients: Clients
    local_training: LocalTraining
    privacy: Privacy
    server: Server
    simulation: Simulation = Simulation()
    tuning: Tuning = UNSTATED
    version: int = PLAN_VERSION

    @property
    def bands(self) -> int:
        """Of the mechanism "banded": as the plan says, or one for each round of separation."""
        if self.privacy.bands is not None:
            return self.privacy.bands
        return min(self.clients.separation, self.server.rounds)

    @property
    def clip_count_stddev(self) -> float:
        """Deviation of the noise on a round's count of updates that were not clipped."""
        return adaptive_clipping.clip_count_stddev_of(
            self.privacy.clip_count_stddev,
            noise_multiplier=self.privacy.calibrated_noise_multiplier,
            clients_per_round=self.clients.clients_per_round,
        )

    @property
    def noise_multiplier_of_updates(self) -> float:
        """Of the noise on the sum of updates alone: more than z where a count is released too.

        PlanError when z leaves no room for the count, or is not solved yet.
        """
        noise = self.privacy.calibrated_noise_multiplier
        if not self.privacy.adaptive_clipping:
            return noise
        try:
            return adaptive_clipping.noise_multiplier_of_updates(
                noise_multiplier=noise, clip_count_stddev=self.clip_count_stddev
            )
        except ValueError as error:
            raise PlanError([str(error)]) from None

    def with_noise_multiplier(self, noise_multiplier: float) -> Plan:
        """The same plan with the noise fixed and no target left to solve.

        `target_local_epsilon` stays, as what every device holds this noise to.
        """
        privacy = replace(self.privacy, noise_multiplier=noise_multiplier, target_epsilon=None)
        return replace(self, privacy=privacy)


SECTIONS: dict[str, type[Any]] = {
    "task": Task,
    "data": Data,
    "clients": Clients,
    "local_training": LocalTraining,
    "privacy": Privacy,
    "server": Server,
    "simulation": Simulation,
    "tuning": Tuning,
}
_OPTIONAL_SECTIONS = {"simulation", "tuning"}


def plan_to_dict(plan: Plan) -> dict[str, Any]:
    """The plan as plain JSON values; unset optional values are left out."""
    tree: dict[str, Any] = {"version": plan.version}
    for name in SECTIONS:
        if name == "tuning" and plan.tuning == UNSTATED:
            continue  # older releases read no such section
        section = asdict(getattr(plan, name))
        tree[name] = {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in section.items()
            if value is not None
        }
    return tree


def plan_from_dict(tree: Mapping[str, Any], *, source: str = "plan") -> Plan:
    """Checks every value of `tree` and returns the plan.

    Args:
      tree: sections as mappings, as `plan_to_dict` writes them.
      source: the name put before every fault (a file's path).

    Raises:
      PlanError: with all faults at once: unknown or missing keys, wrong types,
        values out of range, contradictions, an unknown version.
    """
    faults: list[str] = []
    version = tree.get("version")
    if version != PLAN_VERSION or not isinstance(version, int) or isinstance(version, bool):
        raise PlanError(
            [
                f"{source}: version={version!r} is not readable here; this release reads "
                f"version = {PLAN_VERSION} (put it in the first line)"
            ]
        )
    for key in tree:
        if key != "version" and key not in SECTIONS:
            faults.append(
                f"{source}: unknown section [{shown_key(key)}]; known: {', '.join(SECTIONS)}"
            )
    read: dict[str, dict[str, Any]] = {}
    for name, cls in SECTIONS.items():
        if name not in tree and name not in _OPTIONAL_SECTIONS:
            faults.append(f"{source}: section [{name}] is missing")
            continue
        values = tree.get(name, {})
        if not isinstance(values, Mapping):
            faults.append(f"{source}: {name}={values!r} must be a section [{name}]")
            continue
        read[name] = read_section(name, cls, values, source, faults)
    faults += [f"{source}: {fault}" for fault in contradictions(read)]
    if faults:
        raise PlanError(faults)
    sections = {name: cls(**read[name]) for name, cls in SECTIONS.items()}
    return Plan(version=version, **sections)
