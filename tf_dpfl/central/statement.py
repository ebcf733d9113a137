"""What central training gives away, in numbers and in words."""

from __future__ import annotations

from dataclasses import dataclass

from tf_dpfl.privacy.accounting import account, accountant_versions
from tf_dpfl.privacy.mechanism import POISSON, GaussianRounds, merge_consecutive


@dataclass(frozen=True)
class PrivacyStatement:
    """The guarantee of all training a `DPModel` has done, for one example.

    Attributes:
      epsilon, delta: of everything that was released together.
      relation: the neighbouring relation, "add-or-remove-one".
      method: the bound that gave epsilon.
      spending: the steps, each a Poisson-sampled Gaussian mechanism over examples.
      clip_norm: L2 bound of one example's gradient.
      accountant: library and version.
    """

    epsilon: float
    delta: float
    relation: str
    method: str
    spending: tuple[GaussianRounds, ...]
    clip_norm: float
    accountant: str

    def to_text(self) -> str:
        """One line a fact, for a log or a model's card."""
        lines = [
            f"epsilon = {self.epsilon:.4g} at delta = {self.delta:g}, for one example "
            f"({self.relation})",
            f"by: {self.method}, {self.accountant}",
            f"clip norm of an example's gradient: {self.clip_norm:g}",
        ]
        lines += [
            f"{part.rounds} steps of DP-SGD, noise multiplier {part.noise_multiplier:.4g}, each "
            f"example in each step by an independent coin of probability "
            f"{part.sampling_probability:.4g} (really tossed)"
            for part in self.spending
        ]
        lines.append(
            "not covered: settings chosen by trying them on the same examples; the number of "
            "examples, which is taken as public; metrics computed on the training examples"
        )
        return "\n".join(lines)


def steps_of_dp_sgd(
    *, noise_multiplier: float, sampling_probability: float, steps: int
) -> GaussianRounds:
    """The mechanism of `steps` steps: as rounds whose clients are the examples."""
    return GaussianRounds(noise_multiplier, POISSON, sampling_probability, steps)


def state_privacy(
    spending: list[GaussianRounds], *, delta: float, clip_norm: float
) -> PrivacyStatement:
    """The statement for all of `spending`, in any order."""
    found = account(spending, delta=delta)
    merged = tuple(part for part in merge_consecutive(spending) if isinstance(part, GaussianRounds))
    return PrivacyStatement(
        found.epsilon, delta, found.relation, found.method, merged, clip_norm, accountant_versions()
    )
