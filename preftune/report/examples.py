"""The card's example generations: what the model in `final/` answers to prompts that it was not trained on."""

from __future__ import annotations

from preftune.report import samples, words
from preftune.report.markdown import cut, fenced, inline
from preftune.report.read import Run, Sample
from preftune.report.usage import drawn

SHOWN = 5
SIDES = 3
LONGEST = 2000
"""Characters of a prompt or completion on the card; the report has the whole."""


def last_measured(run: Run) -> list[Sample]:
    """The first answers of the last measurement: of the kept weights, on test rows, else on validation rows."""
    kept = (run.summary or {}).get("kept_step")
    for split in ("test", "validation"):
        found = [sample for sample in run.samples if sample.split == split]
        step = kept if isinstance(kept, int) else max((sample.step for sample in found), default=0)
        answers = [sample for sample in found if sample.step == step]
        if answers:
            return list({(s.where, s.prompt): s for s in reversed(answers)}.values())[::-1][:SHOWN]
    return []


def generations(run: Run) -> list[str]:
    """The section's parts, its heading among them; empty when no answer was written down.

    A run that did not end, or that drew no answers on rows outside training, shows what it has, and says of which step.
    """
    answers = last_measured(run)
    if not answers:
        return _other(run)
    temperature, tokens = drawn(run)
    how = "Greedy" if temperature == 0.0 else f"Drawn at temperature {temperature:g}"
    rows = {"test": "held-out test rows"}.get(answers[0].split, f"{answers[0].split} rows")
    whose = "the saved model" if run.is_complete else f"the model at step {answers[0].step}"
    out = [
        "## Example generations",
        f"{how}, at most {tokens:,} tokens, by {whose}: the first {inline(rows)}, not chosen by how good they are.",
    ]
    for sample in answers:
        score = f", score {words.number(sample.score)}" if sample.score is not None else ""
        end = ", cut at the limit" if sample.finish == "length" else ""
        out.append(
            f"Prompt ({inline(sample.where or '?')}):\n\n{fenced(cut(sample.prompt, LONGEST))}\n\n"
            + (f"True answer:\n\n{fenced(cut(sample.answer, LONGEST))}\n\n" if sample.answer else "")
            + f"Answer of the model{score}{end}:\n\n{fenced(cut(sample.completion, LONGEST))}"
        )
    return out


def _other(run: Run) -> list[str]:
    out = []
    for item in (samples.over_time(run) or samples.in_training(run))[:SIDES]:
        last = item.samples[-1]
        score = f", score {words.number(last.score)}" if last.score is not None else ""
        out.append(
            f"Prompt ({inline(item.split)} row {inline(item.where or '?')}):\n\n{fenced(cut(item.prompt, LONGEST))}\n\n"
            + (f"True answer:\n\n{fenced(cut(item.answer, LONGEST))}\n\n" if item.answer else "")
            + f"Step {last.step}{score}:\n\n{fenced(cut(last.completion, LONGEST))}"
        )
    return ["## Samples", *out] if out else []
