"""Words for runs on preferences and labels: what each metric means, and what happened, in one or two sentences."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from preftune.methods import METHODS
from preftune.report import words
from preftune.report.answers import compares, is_untouched, loss_of
from preftune.report.read import Run, short_path

if TYPE_CHECKING:
    from preftune.report.verdicts import Comparison

REWARDS = {
    "ratio": "β · (log π − log π₀), with log π the log-prob of the whole completion under the model and log π₀ under "
    "the reference",
    "ratio-mean": "β · (log π − log π₀) per token, with π the model and π₀ the reference",
    "likelihood": "β · log π, with log π the log-prob of the whole completion",
    "likelihood-mean": "β · log π per token",
    "score": "what the reward head says at the completion's last token",
}
PATH = re.compile(r"(?<![\w./])(/|[A-Za-z]:\\)[^\s;:,]+")
"""An absolute path inside a sentence."""
HEADLINES = ("rewards/auc", "rewards/accuracy")
NBSP = words.NBSP


def is_score(run: Run) -> bool:
    """True for a reward model: its rewards are a head's scores, not log-ratios."""
    method = METHODS.get(run.method)
    return method is not None and method.reads == "scores"


def reward_name(run: Run) -> str:
    return "score" if is_score(run) else "implicit reward"


def sides(run: Run) -> tuple[str, str]:
    """What the two kinds of completions are called."""
    return ("desirable", "undesirable") if compares(run) == "labels" else ("chosen", "rejected")


def title(run: Run, metric: str) -> str:
    """A metric's name; those of comparisons say what is compared in this run."""
    good, bad = sides(run)
    reward = reward_name(run)
    return {
        "rewards/accuracy": "Preference accuracy",
        "rewards/margin": f"Margin of the {reward}",
        "rewards/auc": f"AUC of the {reward}",
        "rewards/chosen": f"{reward.capitalize()}, {good}",
        "rewards/rejected": f"{reward.capitalize()}, {bad}",
        "rewards/accuracy_longer": "Accuracy where the chosen one is longer",
        "rewards/accuracy_shorter": "Accuracy where the chosen one is shorter",
        "logprobs/accuracy": "Accuracy by log-prob",
        "logprobs/accuracy_per_token": "Accuracy by log-prob per token",
        "logprobs/chosen": f"Log-prob, {good}",
        "logprobs/rejected": f"Log-prob, {bad}",
        "length/chosen": f"Length, {good}",
        "length/rejected": f"Length, {bad}",
    }.get(metric) or words.title(metric)


def hint(run: Run, metric: str) -> str:
    """What a row of the table measures, its unit, and which way is good. Empty for metrics of other runs."""
    good, bad = sides(run)
    reward = reward_name(run)
    unit = "" if is_score(run) else " In nats times β."
    if metric == "nll" and compares(run) is not None:
        return f"Of the {good if compares(run) == 'labels' else 'best'} completion, in nats; lower is likelier."
    return {
        "rewards/accuracy": f"Share of pairs whose {good} completion has the higher {reward}; ties count ½."
        + (" Before training it is 50 % by construction." if is_untouched(run) else ""),
        "rewards/margin": f"{reward.capitalize()} of the {good} completion minus that of the {bad} one.{unit}",
        "rewards/auc": f"Chance that a {good} completion has a higher {reward} than an {bad} one; 0.5 is chance."
        + (" Before training it is 0.5 by construction." if is_untouched(run) else ""),
        "rewards/chosen": f"Mean.{unit} Its level means little, the distance of the two sides counts.",
        "rewards/rejected": f"Mean.{unit}",
        "logprobs/accuracy": "Share of pairs whose chosen completion is likelier as a whole: no reference is involved, "
        "so this compares the model before and after. Short completions are likelier.",
        "logprobs/accuracy_per_token": "The same per token: length plays no part.",
        "logprobs/chosen": "Mean of the summed log-prob, in nats. Below its start: these answers got less likely.",
        "logprobs/rejected": "The same for the other side.",
    }.get(metric, "")


def headline(run: Run, rows: list[Comparison]) -> tuple[str, str]:
    """(sentence, explanation) on the first row, which is one of HEADLINES."""
    row = rows[0]
    others = ("logprobs/chosen", "logprobs/rejected") if row.metric == "rewards/auc" else ("logprobs/accuracy",)
    found = [r for name in others for r in rows if (r.split, r.metric) == (row.split, name)]
    said = [_preferred(run, row), *(_logprobs(run, r) for r in found)]
    why = _why(run, row)
    own = second(rows)
    if row.verdict == "better" and own is not None and own.verdict == "worse":
        why += " Its log-probs alone put fewer pairs in order than before: look at both sides' log-probs below."
    return " ".join(text for text in said if text), why


def second(rows: list[Comparison]) -> Comparison | None:
    """The row that stands under the headline's: the model's own log-probs. None without both ends."""
    if not rows or rows[0].metric not in HEADLINES:
        return None
    own = [row for row in rows if row.metric == "logprobs/accuracy" and row.split == rows[0].split]
    return own[0] if own and own[0].before is not None and own[0].after is not None else None


def also(run: Run, rows: list[Comparison]) -> str:
    """A sentence for runs whose headline is about something else, sampled answers say. Empty when there is none."""
    own = [row for row in rows[1:] if row.metric in HEADLINES and row.split == rows[0].split]
    return _preferred(run, own[0]) if own else ""


def _preferred(run: Run, row: Comparison) -> str:
    """One sentence on how the model orders good and bad completions."""
    found = row.after or row.before
    assert found is not None  # compare() makes a row only from a measurement
    who = "reward model" if is_score(run) else "model"
    where = "held-out" if row.split == "test" else row.split
    interval = f"95{NBSP}% interval {words.span(found, percent=row.percent)}" if found.is_bounded else ""
    if row.metric == "rewards/auc":
        value, chance = words.number(found.value, digits=3), "0.5"
        first = (
            f"On {found.n:,}{NBSP}{where} completions the {who} {'now ' if row.after else ''}puts a desirable one above"
        )
        first += f" an undesirable one with probability {value} (AUC{', ' + interval if interval else ''})"
    else:
        value, chance = words.number(found.value, percent=True), f"50{NBSP}%"
        first = (
            f"On {found.n:,}{NBSP}{where} prompts the {who} {'now ' if row.after else ''}prefers the chosen completion"
        )
        first += f" in {value} of pairs{f' ({interval})' if interval else ''}"
    if not row.after or row.before is None:
        return f"{first}{' before training' if row.before else ''}; chance is {chance}."
    verdict = {"better": "a clear gain", "worse": "a clear loss", "same": "no measurable gain"}.get(
        row.verdict, "too few rows to tell a gain from chance"
    )
    if is_untouched(run):
        return f"{first}, against {chance} by chance: {verdict}."
    before = words.number(row.before.value, percent=row.percent, digits=3)
    return f"{first}, before {before}: {verdict}{_bounds(row)}."


def _bounds(row: Comparison) -> str:
    """The change with its interval, in parentheses."""
    if row.difference is None:
        return ""
    unit = " nats" if row.metric in ("logprobs/chosen", "logprobs/rejected") else ""
    if not row.difference.is_bounded:
        return f" ({row.change}{unit})"
    return f" ({row.change}{unit}, 95{NBSP}% interval {words.span(row.difference, percent=row.percent)})"


def _logprobs(run: Run, row: Comparison) -> str:
    """The log-probs before and after: a comparison in which the reference has no part."""
    if row.before is None or row.after is None or row.difference is None:
        return ""
    known = words.moved(row.difference)
    if row.metric == "logprobs/accuracy":
        old, new = (words.number(i.value, percent=True) for i in (row.before, row.after))
        if known:
            return f"By its log-probs alone it prefers the chosen one in {new}, before {old}{_bounds(row)}."
        return f"By its log-probs alone that did not change measurably: {old} before, {new} after{_bounds(row)}."
    side = sides(run)[0 if row.metric == "logprobs/chosen" else 1]
    if not known:
        return f"The log-prob of {side} completions did not change measurably{_bounds(row)}."
    return f"The log-prob of {side} completions {'rose' if row.difference.value > 0 else 'fell'}{_bounds(row)}."


def _why(run: Run, row: Comparison) -> str:
    if row.before is None or row.after is None:
        return f"There is no measurement {'after' if row.before else 'before'} training to compare it with."
    said = {
        "worse": "The model got worse on rows it was not trained on. Read the advice below before using it.",
        "same": "The interval of the change holds zero: these rows do not show that training helped.",
        "better": "These rows were not trained on, and the interval of the change excludes zero."
        if row.difference is not None and row.difference.is_bounded
        else "These rows were not trained on, and every one of them changed by the same amount.",
    }.get(row.verdict, "These rows can't tell the change from chance.")
    loss = loss_of(run)
    if loss is not None and not is_score(run):
        said += " What a model prefers is read from its implicit reward"
        said += (
            ", log π − log π₀: what training moved against the reference."
            if loss.needs_reference
            else f", {REWARDS[loss.implicit]}."
        )
    if is_untouched(run) and not is_score(run):
        said += (
            " Before training model and reference are the same, so every reward is 0 and the start is chance by "
            "construction. Log-probs compare the model with itself before training."
        )
    elif is_untouched(run):
        said += " The reward head began at zero, so before training all scores were 0 and all pairs ties."
    if row.split == "validation" and run.best_step is not None:
        said += " Validation rows also choose the best checkpoint, so this flatters the result a little."
    return said


def facts(run: Run) -> list[str]:
    """The loss, the reward that it implies, and what the weights and the reference are."""
    loss = loss_of(run)
    out = []
    if loss is not None:
        beta = "" if loss.implicit == "score" else f" with β = {words.number(loss.beta)}"
        kind = "score" if loss.implicit == "score" else "implicit reward"
        out.append(f"Loss {loss.name}{beta}. A completion's {kind} is {REWARDS[loss.implicit]}.")
    lineage = run.manifest.get("lineage")
    if isinstance(lineage, str) and lineage:
        out.append(f"{'Weights' if is_score(run) else 'Weights and reference'}: {lineage}.")
    elif loss is not None and loss.needs_reference:
        out.append("The run did not record what its reference was.")
    train = run.recipe.get("train")
    if (
        loss is not None
        and loss.needs_reference
        and isinstance(train, dict)
        and train.get("reference_logprobs") == "live"
    ):
        out.append("The reference's log-probs were computed anew at each step, none cached.")
    out += [f"{text[0].upper()}{text[1:]}." for text in run.facts]
    return [PATH.sub(lambda found: short_path(found[0]), text) for text in out]
