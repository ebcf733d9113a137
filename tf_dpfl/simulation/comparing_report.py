"""A comparison's report for people: curves, bars, a table, and what is private against whom."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from tf_dpfl.privacy.card_line import in_one_line
from tf_dpfl.privacy.card_words import epsilon_text, words_of
from tf_dpfl.protocol.files import write_atomically
from tf_dpfl.simulation.comparing_outcome import Outcome
from tf_dpfl.simulation.comparing_plans import CENTRAL, FEDERATED
from tf_dpfl.simulation.comparing_tables import Found
from tf_dpfl.simulation.report import (
    NARROW,
    html_page,
    line_chart,
    metric_points,
    narrow,
    svg_of,
    wide_table,
)

_LIGHT, _DEEP = "#9ecae1", "#3182bd"


def write_comparison_report(path: Path, found: Found) -> None:
    """Writes `compare.html`: one file that needs no other and no script."""
    body = [
        *_paragraphs(_summary(found)),
        "<h2>Accuracy over rounds</h2>",
        narrow(_accuracy_chart(found.outcomes)),
        "<h2>Accuracy in the end</h2>",
        narrow(_accuracy_bars(found.outcomes)),
        "<h2>Side by side</h2>",
        wide_table(_head(found), [_row(outcome) for outcome in found.outcomes]),
        *_left_out(found),
        "<h2>What is private, against whom</h2>",
        *_list(_guarantees(found)),
        *_paragraphs(_terms(found)),
        *_epsilon_chart(found.outcomes),
        "<h2>What comparing costs</h2>",
        *_paragraphs(found.privacy_in_words),
        "<h2>How it was compared</h2>",
        *_list(_conditions(found)),
        *_cards(found.outcomes),
    ]
    page = html_page("One task, trained in several ways", "".join(body))
    write_atomically(path, page.encode())


def _summary(found: Found) -> list[str]:
    plan, outcomes = found.comparison.plan, found.outcomes
    best = max(outcomes, key=lambda outcome: outcome.accuracy)
    lines = [
        f"{plan.task.model} on {plan.data.source}: {plan.clients.population} users, "
        f"{plan.clients.clients_per_round} of them a round, {plan.server.rounds} rounds, "
        f"{len(outcomes)} ways to train. In the end {best.name} is the most accurate, with "
        f"{best.accuracy:.4f}."
    ]
    private = [outcome for outcome in outcomes if outcome.variant.is_private]
    if private:
        best = max(private, key=lambda outcome: outcome.accuracy)
        lines.append(
            f"Of those with privacy it is {best.name}, with {best.accuracy:.4f}: each has at most "
            f"epsilon {epsilon_text(found.comparison.target_epsilon)} at delta "
            f"{plan.privacy.delta:g} against whoever sees the models, for one "
            f"{words_of(plan.privacy).unit}."
        )
    chance = _standard_error(best.accuracy, found.test_examples)
    lines.append(
        f"Each was trained once. One standard error of an accuracy on {found.test_examples} test "
        f"examples is {chance:.3f}, and other draws of users and noise change it too: take small "
        "differences for chance."
    )
    return lines


def _standard_error(accuracy: float, examples: int) -> float:
    return math.sqrt(accuracy * (1 - accuracy) / examples)


def _accuracy_chart(outcomes: Sequence[Outcome]) -> str:
    curves = {outcome.name: metric_points(outcome.metrics, "accuracy") for outcome in outcomes}
    return line_chart(curves, x_label="round", y_label="accuracy", size=NARROW)


def _accuracy_bars(outcomes: Sequence[Outcome]) -> str:
    """A bar for each variant, hatched where it is private."""
    figure = Figure(figsize=NARROW, layout="constrained")
    axes = figure.subplots()
    places = range(len(outcomes))
    accuracies = [outcome.accuracy for outcome in outcomes]
    bars = axes.barh(
        places,
        accuracies,
        color=[_LIGHT if outcome.variant.is_private else _DEEP for outcome in outcomes],
        edgecolor="black",
        height=0.6,
    )
    for bar, outcome in zip(bars, outcomes):
        if outcome.variant.is_private:
            bar.set_hatch("///")
    labels = [f"{value:.3f}" for value in accuracies]
    axes.bar_label(bars, labels, padding=4)
    axes.set_yticks(places, [_bar_name(outcome) for outcome in outcomes])
    axes.invert_yaxis()
    axes.set_xlim(0, max(accuracies) * 1.2 or 1.0)
    axes.set_xlabel("accuracy after the last round (hatched: private)")
    return svg_of(figure, label="accuracy of each variant after the last round")


def _bar_name(outcome: Outcome) -> str:
    epsilon = outcome.central_epsilon
    below = f"epsilon {epsilon:.3g}" if math.isfinite(epsilon) else "no privacy"
    return f"{outcome.name}\n{below}"


def _epsilon_chart(outcomes: Sequence[Outcome]) -> list[str]:
    curves = {
        outcome.name: metric_points(outcome.metrics, "central_epsilon") for outcome in outcomes
    }
    if not any(curves.values()):
        return []
    return [
        "<p>Spent after each round, against whoever sees the models:</p>",
        narrow(line_chart(curves, x_label="round", y_label="epsilon", size=NARROW)),
    ]


def _head(found: Found) -> list[str]:
    noised = "local step" if found.comparison.plan.privacy.unit == "example" else "round's sum"
    return [
        "variant",
        "final accuracy",
        "best (round)",
        "epsilon against whoever sees the models",
        "epsilon against the server: one report / all",
        f"noise multiplier of each {noised}",
        "noise multiplier of correlated noise's draws",
        "sampling",
        "seconds (a round)",
        "kB down / up, a user and round",
    ]


def _row(outcome: Outcome) -> list[str]:
    best, best_round = outcome.best
    plan = outcome.plan
    one, every = outcome.local_epsilons
    traffic = outcome.traffic
    return [
        outcome.name,
        f"{outcome.accuracy:.4f}",
        f"{best:.4f} ({best_round})",
        _epsilon(outcome.central_epsilon),
        f"{_epsilon(one)} / {_epsilon(every)}" if math.isfinite(one) else "no guarantee",
        *("" if noise is None else f"{noise:.4g}" for noise in outcome.noise_multipliers),
        "none" if outcome.name == CENTRAL else plan.clients.sampling,
        f"{outcome.seconds:.1f} ({outcome.seconds_per_round:.2g})",
        f"0; {_kilobytes(traffic.once)} up once"
        if traffic.once
        else f"{_kilobytes(traffic.down)} / {_kilobytes(traffic.up)}",
    ]


def _epsilon(epsilon: float) -> str:
    return f"{epsilon:.4g}" if math.isfinite(epsilon) else "no guarantee"


def _kilobytes(count: float) -> str:
    return f"{count / 1000:.4g}"


def _left_out(found: Found) -> list[str]:
    if not found.not_compared:
        return []
    lines = [f"{name}: {reason}" for name, reason in found.not_compared.items()]
    return ["<h2>Not compared</h2>", *_list(lines)]


def _guarantees(found: Found) -> list[str]:
    """One line for each variant; terms are named, `_terms` says what they mean."""
    lines = []
    for outcome in found.outcomes:
        card = outcome.card
        if outcome.name == CENTRAL:
            text = (
                "no guarantee against anybody. Whoever runs it sees every record, and the model "
                "may give records away"
            )
        elif card is None:
            text = (
                "no guarantee against anybody. Records stay on the devices, but updates and models "
                "may give them away"
            )
        else:
            text = in_one_line(card)
        lines.append(f"{outcome.name} ({outcome.variant.title}): {text}.")
    return lines


def _terms(found: Found) -> list[str]:
    """What the terms of `_guarantees` mean, each once."""
    lines: dict[str, None] = {}
    for outcome in found.outcomes:
        if outcome.card is not None:
            central, local = outcome.card["central"], outcome.card["local"]
            texts = (f"Protected: {central['unit']}", central["adjacency"], central["sampling"])
            lines |= dict.fromkeys(text for text in (*texts, local.get("adjacency")) if text)
    return [f"{line[:1].upper()}{line[1:]}." for line in lines]


def _conditions(found: Found) -> list[str]:
    plan, schedule, names = found.comparison.plan, found.schedule, _names(found)
    local = plan.local_training
    lines = [
        "All variants: the same initial weights, users, records, loss, local optimizer "
        f"({local.optimizer}, learning rate {local.learning_rate:g}), batch size "
        f"{local.batch_size} and test split. Nothing was tuned for any of them.",
        "All variants with privacy: the plan's clip norm and the same central epsilon, to 1 %, for "
        "which each one's noise was solved. Correlated noise needs users that keep a distance "
        "between their rounds (min_separation); independent noise draws them as the plan says, or "
        "afresh in every round (poisson or fixed) where the plan says min_separation.",
    ]
    if any(outcome.plan.privacy.is_correlated for outcome in found.outcomes):
        lines.append(
            "The two columns of noise multipliers are not to be compared: both are standard "
            "deviations over the clip norm, but one is that of the noise on each round's sum, the "
            "other that of the independent draws which correlated noise is made of, and of which "
            "later rounds take a part off again."
        )
    if CENTRAL in names:
        lines.append(
            f"central: all {schedule.records} records of the users, {schedule.passes:g} passes "
            "over them, shuffled anew for each: as many as the federated users are expected to "
            f"make in all ({plan.server.rounds} rounds x sampling probability "
            f"{plan.clients.sampling_probability:g} x {local.epochs} local epochs). One round on "
            "the chart is that part of them. Its optimizer goes on from beginning to end, there "
            "is no server optimizer and no proximal term."
        )
    if FEDERATED in names:
        lines.append(
            "federated: its updates are as long as they come. Learning rates that were chosen for "
            "clipped updates may be too large for it, and clipping alone can then be of use."
        )
    sent = (
        "Bytes are those of the weights down and the update up, 4 for each weight as the protocol "
        "sends them; headers and the task's own files, which go out once, are left out."
    )
    if CENTRAL in names:
        sent += (
            " Of central no weights travel: what goes up, once, are the user's records (the mean "
            "over users), as they are stored here."
        )
    lines.append(sent)
    lines.append(
        "Seconds are those of this simulation's rounds with their evaluations, not of devices; "
        "starting up is left out."
    )
    return lines


def _names(found: Found) -> set[str]:
    return {outcome.name for outcome in found.outcomes}


def _cards(outcomes: Sequence[Outcome]) -> list[str]:
    """Every privacy card, folded."""
    cards = [
        f"<details><summary>{html.escape(outcome.name)}</summary>"
        f"<pre>{html.escape(outcome.card_text)}</pre></details>"
        for outcome in outcomes
        if outcome.card_text
    ]
    return ["<h2>Privacy cards</h2>", *cards] if cards else []


def _paragraphs(lines: Sequence[str]) -> list[str]:
    return [f"<p>{html.escape(line)}</p>" for line in lines]


def _list(lines: Sequence[str]) -> list[str]:
    return ["<ul>", *(f"<li>{html.escape(line)}</li>" for line in lines), "</ul>"]
