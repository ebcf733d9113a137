"""What the privacy card says in words, for each unit of privacy."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from tf_dpfl.privacy.accounting import ADD_OR_REMOVE, ZERO_OUT
from tf_dpfl.privacy.mechanism import FIXED, MIN_SEPARATION, POISSON
from tf_dpfl.protocol.plan import Privacy


@dataclass(frozen=True)
class Words:
    """The terms of a card's epsilons for one unit.

    `sampling` and `mechanism` are format strings (of q and separation_less_one; of clip, noise,
    smallest, bands and the card's entries for adaptive clipping); `not_covered` are the lines
    that hold for this unit in particular.
    """

    unit: str
    relations: Mapping[str, str]
    sampling: Mapping[str, str]
    known_cohorts: str
    local_unit: str
    local_relation: str
    local_against: str
    mechanism: str
    not_covered: tuple[str, ...]
    released: str = (
        "the model after each round, in checkpoints and exports; each client's own losses and the "
        "single reports are not"
    )


NO_SAMPLING = "none is assumed: every client is counted as if in every round"
SEEDED = (
    "THE GUARANTEE IS VOID for whoever knows the seed this run was given: cohorts and noise can "
    "be computed from it, and the noise taken off"
)
TUNING = "choosing the model, the settings and the clip norm by trying them on the same users"
TUNING_BESIDE = (
    "what else was learned from users in choosing the settings: the model, what was searched and "
    "what was not, and searches that the plan does not name"
)
TEST_SPLIT = "people in the test split, on which accuracy is measured: it is taken as public"
ELSEWHERE = "anything computed on the users' data outside of the rounds, such as local metrics"
FLOATS = "attacks on the floating-point form of the noise beyond docs/privacy.md"
PRIOR = "in the local column: reports a device made before this plan"

_REPORTS = (
    "who took part: the number of reports of a round, whether a round was released, and any "
    "other sign of who was in a cohort count as no sign at all; against whoever has one, the "
    "numbers for known cohorts hold instead"
)
_NOISE_FLOOR = (
    "how much noise there is: noise on devices is counted at its least and grows with the number "
    "of reports, so that models of many weights can show that number (see the line above)"
)
_WHOLE_CLIENT = (
    "a client's whole data set, which is NOT protected as one: n examples of one client are "
    "protected together at most by group privacy, as if the noise were n times smaller; nor "
    "is it hidden whether, when and with how many examples a client takes part"
)
_UNLUCKY_CLIENT = (
    "a client that was drawn more often than others: the central number holds before the "
    "cohorts are drawn; of a client in k rounds the closed form for k rounds holds, and of one "
    "in every round the number for known cohorts"
)
_CLIPPED = {
    "global": "each update clipped to norm {clip:g}",
    "per_layer": "each update clipped layer by layer, every trainable variable to norm {clip:g} "
    "over the root of their number, so that the whole has at most norm {clip:g}",
    "value": "each update clipped entry by entry, to +-{clip:g} over the root of the number of "
    "weights, so that the whole has at most norm {clip:g}",
}
_MECHANISM_OF_USERS = (
    _CLIPPED["global"] + ", Gaussian noise of at least {noise:g} clip norms on "
    "their sum, added by the "
)

_USER = Words(
    unit="user (everything one user contributes over all rounds)",
    relations={
        ADD_OR_REMOVE: "add-or-remove-one: all of one user's updates are there, or are not",
        ZERO_OUT: "zero-out: all of one user's updates are as they are, or are replaced by zero "
        "in every round the user takes part in",
    },
    sampling={
        POISSON: "Poisson: each user joins each round by an independent secret coin of "
        "probability {q:g}",
        FIXED: "fixed-size: each round's cohort is drawn uniformly without replacement, in secret, "
        "probability {q:g} for each user",
    },
    known_cohorts="whoever also knows who took part in each round",
    local_unit="user (one device, all of its examples)",
    local_relation="replace-one: any two data sets of the device",
    local_against="the server, which sees each report with one share of the noise",
    mechanism=_MECHANISM_OF_USERS
    + "devices, in shares (a round with fewer than {smallest} reports is not released)",
    not_covered=(_REPORTS, _NOISE_FLOOR),
)

_USER_OF_A_TRUSTED_SERVER = replace(
    _USER,
    mechanism=_MECHANISM_OF_USERS
    + "server (a round with fewer than {smallest} reports is not released)",
    not_covered=(_REPORTS,),
)

_CLIPPED_ADAPTIVELY = (
    "each update clipped to a norm that starts at {clip:g} and goes after the "
    "{target_quantile:g} quantile of the users' norms; two noised releases a round, the sum of "
    "the updates (at least {noise_multiplier_of_updates:g} clip norms) and the count of those "
    "that were not clipped (at least {clip_count_stddev:g}), together one Gaussian mechanism of "
    "noise multiplier {noise:g}, which is what is counted; noise added by the "
)
_RELEASED_ADAPTIVELY = "the clip norm of each round, and " + _USER.released


def _adaptive(words: Words) -> Words:
    """The same with a clip norm that follows the users' norms."""
    mechanism = words.mechanism.replace(_MECHANISM_OF_USERS, _CLIPPED_ADAPTIVELY)
    zero_out = (
        f"{words.relations[ZERO_OUT]}, and then adds nothing to the count of unclipped updates"
    )
    return replace(
        words,
        mechanism=mechanism,
        released=_RELEASED_ADAPTIVELY,
        relations={**words.relations, ZERO_OUT: zero_out},
    )


_SEPARATION = (
    "minimum separation: a user that took part in a round takes part in none of the "
    "{separation_less_one} rounds after it; nothing is assumed to be random or secret"
)
_CORRELATED_IS_ONE = (
    "single rounds: the numbers hold for all rounds together; noise of later rounds takes part of "
    "the earlier rounds' noise off again, so a round less is not a smaller number by a share"
)
_WHO_TAKES_PART = (
    "whether and when a user takes part: only what it contributes is hidden, and its place in the "
    "rounds is the same in both cases that are compared"
)
_MECHANISM_OF_CORRELATED = (
    _CLIPPED["global"] + ", noise that is correlated over rounds on their sum, "
    "added by the server, made of independent Gaussian draws of {noise:g} clip norms "
)
_SMALLEST = " (a round with fewer than {smallest} reports is not released)"

_BANDED = replace(
    _USER,
    sampling={MIN_SEPARATION: _SEPARATION},
    mechanism=_MECHANISM_OF_CORRELATED
    + "by a banded matrix factorisation, square-root Toeplitz, {bands} bands"
    + _SMALLEST,
    not_covered=(_WHO_TAKES_PART, _CORRELATED_IS_ONE),
)
_TREE = replace(
    _BANDED,
    mechanism=_MECHANISM_OF_CORRELATED
    + "for each node by tree aggregation, without restarts"
    + _SMALLEST,
)

_EXAMPLE = Words(
    unit="example (one example of one client, in everything it is used for)",
    relations={
        ZERO_OUT: "zero-out: the gradients of one example are as they are, or are replaced by "
        "zero in every step it takes part in; the other examples stay in their batches",
    },
    sampling={
        POISSON: "Poisson: each client joins each round by an independent coin of probability "
        "{q:g}; nothing is assumed to be sampled inside a client",
        FIXED: "fixed-size: each round's cohort is drawn uniformly without replacement, "
        "probability {q:g} for each client; nothing is assumed to be sampled inside a client",
    },
    known_cohorts="whoever also knows who took part in each round, of a client in all of them",
    local_unit="example (one example of one device, in everything it is used for)",
    local_relation="replace-one: one example of the device is another one, in the same place",
    local_against="the server, which sees each report; the noise of the device's steps is in it",
    mechanism="each local step of a client clips each example's gradient to norm {clip:g} and "
    "adds Gaussian noise of {noise:g} clip norms to their sum, on the device (a round with "
    "fewer than {smallest} reports is not released)",
    not_covered=(_WHOLE_CLIENT, _UNLUCKY_CLIENT),
)


def words_of(privacy: Privacy) -> Words:
    """The words for the unit, the place of the noise, the mechanism and the clipping of a plan."""
    if privacy.unit == "example":
        return _EXAMPLE
    if privacy.is_correlated:
        words = _TREE if privacy.mechanism == "tree" else _BANDED
    else:
        words = _USER if privacy.noise == "device" else _USER_OF_A_TRUSTED_SERVER
    if privacy.adaptive_clipping:
        return _adaptive(words)
    clipped = words.mechanism.replace(_CLIPPED["global"], _CLIPPED[privacy.clipping])
    return replace(words, mechanism=clipped)


def epsilon_text(epsilon: float | None) -> str:
    """An epsilon for people; None stands for an infinite one, as in JSON."""
    return f"{epsilon:.4g}" if epsilon is not None and math.isfinite(epsilon) else "infinite"
