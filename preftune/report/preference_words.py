"""Words for runs on preferences and labels: what each metric means, and what happened, in one or two sentences."""

from __future__ import annotations

from typing import TYPE_CHECKING

from preftune.report import words
from preftune.report.answers import compares, is_untouched, loss_of
from preftune.report.read import Run

if TYPE_CHECKING:
    from preftune.report.words import Comparison

REWARDS = {
    "ratio": "β · (log π − log π₀), with log π the log-prob of the whole completion under the model and log π₀ under "
    "the reference",
    "ratio-mean": "β · (log π − log π₀) per token, with π the model and π₀ the reference",
    "likelihood": "β · log π, with log π the log-prob of the whole completion",
    "likelihood-mean": "β · log π per token",
    "score": "what the reward head says at the completion's last token",
}
HEADLINES = ("rewards/auc", "rewards/accuracy")
NBSP = words.NBSP


def is_score(run: Run) -> bool:
    """True for a reward model: its rewards are a head's scores, not log-ratios."""
    loss = loss_of(run)
    return loss is not None and loss.implicit == "score"


def reward_name(run: Run) -> str:
    return "score" if is_score(run) else "implicit reward"


def sides(run: Run) -> tuple[str, str]:
    """What the two kinds of completions are called."""
    return ("desirable", "undesirable") if compares(run) == "labels" else ("chosen", "rejected")


def title(run: Run, metric: str) -> str | None:
    """A metric's name in such a run; None for metrics that have the same name everywhere."""
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
    }.get(metric)


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
        "logprobs/accuracy": "Share of pairs whose chosen completion is likelier as a whole: no reference is involved, so "
        "this compares the model before and after. Short completions are likelier.",
        "logprobs/accuracy_per_token": "The same per token: length plays no part.",
        "logprobs/chosen": "Mean of the summed log-prob, in nats. Below its start: these answers got less likely.",
        "logprobs/rejected": "The same for the other side.",
    }.get(metric, "")


def headline(run: Run, rows: list[Comparison]) -> tuple[str, str]:
    """(sentence, explanation) on the first row, which is one of HEADLINES."""
    row = rows[0]
    ranked = row.metric == "rewards/auc"
    sentence = _area(run, row) if ranked else _accuracy(run, row)
    others = ("logprobs/chosen", "logprobs/rejected") if ranked else ("logprobs/accuracy",)
    found = [r for name in others for r in rows if (r.split, r.metric) == (row.split, name)]
    said = [text for text in (_logprobs(run, r) for r in found) if text]
    return " ".join([sentence, *said]), _why(run, row)


def also(run: Run, rows: list[Comparison]) -> str:
    """A sentence for runs whose headline is about something else, sampled answers say."""
    for metric in HEADLINES:
        for row in rows[1:]:
            if row.metric == metric and row.split == rows[0].split:
                return _area(run, row) if metric == "rewards/auc" else _accuracy(run, row)
    return ""


def _accuracy(run: Run, row: Comparison) -> str:
    found = row.after or row.before
    assert found is not None
    kind = "model scores" if is_score(run) else "model's implicit reward puts"
    when = "now " if row.after else "before training "
    where = {"test": "held-out prompts", "validation": "validation prompts"}.get(row.split, f"{row.split} prompts")
    value = f"{words.number(found.value, percent=True)} of pairs"
    interval = f" ({_bounds(row, found)})" if found.is_bounded else ""
    first = (
        f"On {found.n:,}{NBSP}{where} the {kind} the chosen completion "
        f"{when}above the rejected one in {value}{interval}"
    )
    if row.before is None or row.after is None:
        return f"{first}; guessing gives 50{NBSP}%."
    if is_untouched(run):
        return f"{first}; 50{NBSP}% is chance, and where every run starts: {_verdict(row)}."
    return f"{first}, before {words.number(row.before.value, percent=True)}: {_verdict(row)}."


def _area(run: Run, row: Comparison) -> str:
    found = row.after or row.before
    assert found is not None
    interval = f", {_bounds(row, found)}" if found.is_bounded else ""
    first = (
        f"On {found.n:,}{NBSP}{words.ROWS.get(row.split, row.split).removesuffix(' rows')} completions the model's "
        f"{reward_name(run)} puts a desirable one above an undesirable one with probability "
        f"{words.number(found.value, digits=3)} (AUC{interval})"
    )
    if row.before is None or row.after is None:
        return f"{first}; 0.5 is chance."
    if is_untouched(run):
        return f"{first}; 0.5 is chance, and where every run starts: {_verdict(row)}."
    return f"{first}, before {words.number(row.before.value, digits=3)}: {_verdict(row)}."


def _bounds(row: Comparison, interval: words.Interval) -> str:
    return f"95{NBSP}% interval {words.span(interval, percent=row.percent)}"


def _verdict(row: Comparison) -> str:
    """The change in words, with its interval."""
    if row.difference is None:
        return "no paired difference, so chance is not ruled out"
    change = f"{row.change}, {_bounds(row, row.difference)}" if row.difference.is_bounded else row.change
    return {
        "better": f"a gain that chance does not explain ({change})",
        "worse": f"a loss that chance does not explain ({change})",
        "same": f"no gain that these rows could tell from chance ({change})",
    }.get(row.verdict, f"too few rows to tell from chance ({change})")


def _logprobs(run: Run, row: Comparison) -> str:
    """The log-probs before and after: a comparison in which the reference has no part."""
    if row.before is None or row.after is None or row.difference is None:
        return ""
    good, bad = sides(run)
    if row.metric == "logprobs/accuracy":
        who = "By log-prob alone, which a change of the model has to move, the chosen one leads in"
        values = f"{words.number(row.after.value, percent=True)}, before {words.number(row.before.value, percent=True)}"
        return f"{who} {values}: {_verdict(row)}."
    side = good if row.metric == "logprobs/chosen" else bad
    if words.moved(row.difference) is not True:
        return f"The log-prob of {side} completions did not change measurably."
    verb = "rose" if row.difference.value > 0 else "fell"
    interval = f", {_bounds(row, row.difference)}" if row.difference.is_bounded else ""
    return f"The log-prob of {side} completions {verb} by {words.number(abs(row.difference.value))} nats{interval}."


def _why(run: Run, row: Comparison) -> str:
    if row.before is None or row.after is None:
        return f"There is no measurement {'after' if row.before else 'before'} training to compare it with."
    said = {
        "worse": "The model got worse on rows it was not trained on. Read the advice below before using it.",
        "same": "The interval of the change holds zero: these rows do not show that training helped.",
        "unknown": "These are too few rows to tell the change from chance.",
    }.get(row.verdict, "It is measured on rows that were not trained on, and its interval excludes zero.")
    if is_untouched(run) and not is_score(run):
        said += (
            " The implicit reward compares the model with its reference. Before training the two are the same, so every "
            "reward is 0 and the start is chance by construction; log-probs say what the model itself did before and after."
        )
    elif is_untouched(run):
        said += " The reward head began at zero, so before training every score is 0 and all pairs are ties."
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
        out.append(f"Weights and reference: {lineage}.")
    elif loss is not None and loss.needs_reference:
        out.append("The run did not record what its reference was.")
    train = run.recipe.get("train")
    if loss is not None and loss.needs_reference and isinstance(train, dict) and train.get("reference_logprobs") == "live":
        out.append("The reference's log-probs were computed anew at each step, none cached.")
    return out + [f"{text[0].upper()}{text[1:]}." for text in run.facts]
