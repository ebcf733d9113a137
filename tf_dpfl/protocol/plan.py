"""The plan as frozen dataclasses: what is trained, on whom, and how privately.

One plan is read by the simulation, the exporter, the server and (inside the
manifest) by every device. Settings that change privacy (`Clients`, `Privacy`,
`Server.rounds`) never share a dataclass with settings that change speed
(`Simulation`). `plan_files` reads and writes them as TOML.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from tf_dpfl.protocol.checks import Rule, choice, flag, integer, integers, number, text
from tf_dpfl.protocol.errors import PlanError

PLAN_VERSION = 1
_OWN_SOURCES = 'source "folder", "csv" or "store"'

SPARSE_LOSS = "sparse_categorical_crossentropy"
BINARY_LOSS = "binary_crossentropy"
LOSSES = (
    SPARSE_LOSS,
    "categorical_crossentropy",
    BINARY_LOSS,
    "mean_squared_error",
    "mean_absolute_error",
    "huber",
)

# More is a slip of the pen, and would overflow: training counts a client's steps
# (epochs times examples) in int32, and the accountant takes so many rounds.
_MOST_CLIENTS = 10**9
_MOST_EXAMPLES_PER_CLIENT = 10**5
_MOST_EPOCHS = 10**4
_MOST_ROUNDS = 10**9

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
    exactly `clients_per_round` without replacement. Of each client at most
    `examples_per_client` examples are used.
    """

    population: int = integer(at_least=1, at_most=_MOST_CLIENTS)
    clients_per_round: int = integer(at_least=1, at_most=_MOST_CLIENTS)
    examples_per_client: int = integer(at_least=1, at_most=_MOST_EXAMPLES_PER_CLIENT)
    sampling: str = choice("poisson", "fixed")

    @property
    def sampling_probability(self) -> float:
        """Probability that one client is in one round's cohort, in (0, 1]."""
        return self.clients_per_round / self.population


@dataclass(frozen=True)
class LocalTraining:
    """What one client does with its own examples, in the order they are stored.

    `loss` is a name of `LOSSES` or `package.module:function` of (y, prediction)
    that returns the loss of each example. `target` says what `y` holds: "auto"
    is class ids for sparse cross-entropy and values for everything else.
    `proximal` is FedProx' mu (Li et al. 1812.06127). `optimizer_state` "keep"
    carries a local optimizer's state into the client's next round.
    """

    epochs: int = integer(at_least=1, at_most=_MOST_EPOCHS)
    batch_size: int = integer(at_least=1, at_most=_MOST_EXAMPLES_PER_CLIENT)
    learning_rate: float = number(at_least=_SMALLEST_RATE, below=_RATES_BELOW)
    optimizer: str = choice("sgd", "momentum", "adam", default="sgd")
    momentum: float = number(at_least=0, below=1, default=0.9)
    beta_1: float = number(at_least=0, below=1, default=0.9)
    beta_2: float = number(at_least=0, below=1, default=0.999)
    epsilon: float = number(at_least=_SMALLEST_RATE, below=_RATES_BELOW, default=1e-7)
    proximal: float = number(at_least=0, below=_RATES_BELOW, default=0.0)
    optimizer_state: str = choice("reset", "keep", default="reset")
    loss: str = text(default="sparse_categorical_crossentropy")
    target: str = choice("auto", "class_ids", "values", default="auto")

    @property
    def targets_are_class_ids(self) -> bool:
        """Whether `y` holds int32 class ids; float32 values otherwise."""
        if self.target == "auto":
            return self.loss == SPARSE_LOSS
        return self.target == "class_ids"


@dataclass(frozen=True)
class Privacy:
    """The mechanism. Exactly one of `noise_multiplier` and `target_epsilon`.

    `noise_multiplier` is a standard deviation divided by `clip_norm`. With `unit`
    "user" it is that of the noise on the sum of the clipped updates; with `noise`
    "device" each report carries variance (noise_multiplier * clip_norm)^2 /
    smallest_cohort. With `unit` "example" every local step is one of DP-SGD
    (Abadi et al. 1607.00133): `clip_norm` bounds each example's gradient, and the
    noise is that on the sum of the step's clipped gradients.
    """

    # The ranges keep noise and clipping factors normal, finite float32 numbers.
    clip_norm: float = number(at_least=1e-9, below=1e12)
    delta: float = number(above=0, below=1)
    smallest_cohort: int = integer(at_least=1, at_most=_MOST_CLIENTS)
    unit: str = choice("user", "example", default="user")
    noise: str = choice("device", "server", default="device")
    noise_multiplier: float | None = number(at_least=0, below=1e6, optional=True, default=None)
    target_epsilon: float | None = number(above=0, optional=True, default=None)
    secure_aggregation: bool = flag(default=False)

    @property
    def calibrated_noise_multiplier(self) -> float:
        """The noise multiplier; PlanError while only `target_epsilon` is known."""
        if self.noise_multiplier is None:
            raise PlanError(
                [
                    "privacy.noise_multiplier is not set: call "
                    "tf_dpfl.calibrate_plan(plan) to solve it from privacy.target_epsilon"
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
    version: int = PLAN_VERSION

    def with_noise_multiplier(self, noise_multiplier: float) -> Plan:
        """The same plan with the noise fixed and no target epsilon left to solve."""
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
}
_OPTIONAL_SECTIONS = {"simulation"}


def plan_to_dict(plan: Plan) -> dict[str, Any]:
    """The plan as plain JSON values; unset optional values are left out."""
    tree: dict[str, Any] = {"version": plan.version}
    for name in SECTIONS:
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
                f"{source}: unknown section [{_shown(key)}]; known: {', '.join(SECTIONS)}"
            )
    sections: dict[str, Any] = {}
    for name, cls in SECTIONS.items():
        if name not in tree and name not in _OPTIONAL_SECTIONS:
            faults.append(f"{source}: section [{name}] is missing")
            continue
        values = tree.get(name, {})
        if not isinstance(values, Mapping):
            faults.append(f"{source}: {name}={values!r} must be a section [{name}]")
            continue
        sections[name] = _read_section(name, cls, values, source, faults)
    complete = {name: section for name, section in sections.items() if section is not None}
    faults += [f"{source}: {fault}" for fault in _contradictions(complete)]
    if faults:
        raise PlanError(faults)
    return Plan(version=version, **complete)


def _shown(key: Any) -> str:
    """A key from a file in one line: as it is if it is a plain word, else quoted."""
    return key if isinstance(key, str) and key.isidentifier() else repr(key)


def _read_section(
    name: str, cls: type[Any], values: Mapping[str, Any], source: str, faults: list[str]
) -> Any:
    """One section's dataclass, or None after adding its faults."""
    before = len(faults)
    known = {f.name: f for f in fields(cls)}
    for key in values:
        if key not in known:
            faults.append(f"{source}: unknown key {name}.{_shown(key)}; known: {', '.join(known)}")
    arguments: dict[str, Any] = {}
    for key, f in known.items():
        rule: Rule = f.metadata["rule"]
        if key not in values:
            if f.default is not f.default_factory:  # both MISSING when required
                continue
            faults.append(f"{source}: {name}.{key} is missing; it must be {rule.allowed}")
        elif not rule.accepts(values[key]):
            faults.append(f"{source}: {name}.{key}={values[key]!r} must be {rule.allowed}")
        else:
            arguments[key] = rule.convert(values[key])
    return cls(**arguments) if len(faults) == before else None


def _contradictions(sections: Mapping[str, Any]) -> list[str]:
    """Faults between values, for the sections that could be read."""
    faults: list[str] = []
    clients: Clients | None = sections.get("clients")
    privacy: Privacy | None = sections.get("privacy")
    data: Data | None = sections.get("data")
    training: LocalTraining | None = sections.get("local_training")
    if training:
        faults += _training_contradictions(training)
    if clients and clients.clients_per_round > clients.population:
        faults.append(
            f"clients.clients_per_round={clients.clients_per_round} must be at most "
            f"clients.population={clients.population}"
        )
    if privacy and clients and privacy.smallest_cohort > clients.clients_per_round:
        faults.append(
            f"privacy.smallest_cohort={privacy.smallest_cohort} must be at most "
            f"clients.clients_per_round={clients.clients_per_round}: no round could close"
        )
    if privacy and clients:
        faults += _delta_contradictions(privacy, clients)
    if privacy and (privacy.noise_multiplier is None) == (privacy.target_epsilon is None):
        faults.append(
            "privacy.noise_multiplier and privacy.target_epsilon: set exactly one of the two"
        )
    if privacy and privacy.secure_aggregation:
        faults.append(
            "privacy.secure_aggregation=true is not available in this release; set it to false"
        )
    if privacy and privacy.unit == "example" and privacy.noise == "server":
        faults.append(
            'privacy.noise="server" does not go with unit="example": the noise belongs to the '
            'steps of each client; set noise = "device"'
        )
    if data:
        faults += _data_contradictions(data)
    return faults


def _delta_contradictions(privacy: Privacy, clients: Clients) -> list[str]:
    """Delta must be below one over the number of users, or examples, it protects."""
    number, name, whose = clients.population, "clients.population", "somebody's data"
    if privacy.unit == "example":
        number *= clients.examples_per_client
        name, whose = f"({name} * clients.examples_per_client)", "an example"
    if privacy.delta * number < 1:
        return []
    return [
        f"privacy.delta={privacy.delta:g} must be below 1/{name}={1 / number:g}: a larger one "
        f"allows publishing {whose} whole"
    ]


def _training_contradictions(training: LocalTraining) -> list[str]:
    faults = []
    named = training.loss in LOSSES
    if not named and ":" not in training.loss:
        faults.append(
            f"local_training.loss={training.loss!r} must be one of {', '.join(LOSSES)} or "
            '"package.module:function"'
        )
    if named and training.target != "auto":
        ids = training.loss == SPARSE_LOSS
        if ids != (training.target == "class_ids"):
            faults.append(
                f'local_training.target="{training.target}" does not fit loss='
                f'"{training.loss}", which takes {"class ids" if ids else "values"}; leave it out'
            )
    if training.optimizer_state == "keep":
        faults.append(
            'local_training.optimizer_state="keep" is not available in this release; set "reset"'
        )
    return faults


def _data_contradictions(data: Data) -> list[str]:
    own = data.source in ("folder", "csv", "store")
    faults = []
    if own and not data.path:
        faults.append(f'data.path is missing: source="{data.source}" needs it')
    if own and data.partition != "natural":
        faults.append(
            f'data.partition="{data.partition}" must be "natural" with source="{data.source}": '
            "the data already say whose they are"
        )
    if not own and data.partition == "natural":
        faults.append(f'data.partition="natural" needs {_OWN_SOURCES}, not "{data.source}"')
    if not own and (data.path or data.test_path):
        faults.append(f'data.path and data.test_path need {_OWN_SOURCES}, not "{data.source}"')
    if data.source == "store" and data.test_path:
        faults.append('data.test_path is not for source "store": a store has its own test split')
    if data.source == "csv" and not data.feature_shape:
        faults.append('data.feature_shape is missing: source="csv" needs it, e.g. [8, 8, 1]')
    return faults
