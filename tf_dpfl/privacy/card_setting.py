"""What the privacy card says of the setting: whom one has to trust, and what is counted."""

from __future__ import annotations

from importlib import metadata

from tf_dpfl.privacy.accounting import accountant_versions
from tf_dpfl.protocol.plan import Plan, Privacy

_STEPS_ON_DEVICES = (
    "central against whoever sees the released models, local against the server: each device "
    "noises its own training steps"
)
_SHARES_ON_DEVICES = (
    "distributed: central against whoever sees the released models, from noise that the devices "
    "add in shares; local against the server, from one share"
)
_SERVER = "central, with a trusted server; no local privacy"

_TRUST_DEVICES = (
    "for the central numbers, that the server draws cohorts and closes rounds as stated{names}, "
    "and that devices add their share of the noise and keep it to themselves (one that does not "
    "takes its share off); for the local column nobody but one's own device"
)
# A share that follows a smaller clip norm than another device's hides less of that one.
_NAMES_ONE_CLIP_NORM = " and names all devices of a round one clip norm"
_TRUST_STEPS = (
    "for the central numbers, that the server draws cohorts as stated; no other device; for the "
    "local column nobody but one's own device"
)
_TRUST_SERVER = (
    "the server, for everything: it sees each update without noise, draws cohorts and noise as "
    "stated, keeps the noise to itself and releases nothing else"
)


def setting_of(privacy: Privacy) -> str:
    """Central, local or distributed differential privacy."""
    if privacy.unit == "example":
        return _STEPS_ON_DEVICES
    return _SHARES_ON_DEVICES if privacy.noise == "device" else _SERVER


def trust_of(privacy: Privacy) -> str:
    """Whom the numbers trust, and to do what."""
    if privacy.unit == "example":
        return _TRUST_STEPS
    if privacy.noise != "device":
        return _TRUST_SERVER
    return _TRUST_DEVICES.format(names=_NAMES_ONE_CLIP_NORM if privacy.adaptive_clipping else "")


def accesses_of(*, rounds: int, prior_rounds: int) -> str:
    """Which uses of the users' data the central numbers count."""
    beside = f", and {prior_rounds} rounds before or beside it" if prior_rounds else ""
    return (
        f"every use of users' examples in the {rounds} rounds of this training{beside}; trying "
        "settings on them: see the settings; nothing else"
    )


def participants_of(plan: Plan) -> str:
    """Who could take part, and with how much."""
    clients, training = plan.clients, plan.local_training
    return (
        f"{clients.clients_per_round} of {clients.population} clients a round "
        f"({clients.sampling} sampling), each with at most {clients.examples_per_client} examples, "
        f"local epochs: {training.epochs}, batches of {training.batch_size}"
    )


def verification() -> str:
    """What computed the numbers, and how to compute them again."""
    return (
        f"tf_dpfl {metadata.version('tf-dpfl')} (open source) with {accountant_versions()}; dpfl "
        "privacy RUN_OR_STATE counts everything again from what was charged"
    )
