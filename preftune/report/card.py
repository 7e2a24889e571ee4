"""`write_model_card`: README.md of a run folder, with the front matter that the Hugging Face Hub reads.

The card says only what the run folder knows. Text from the run goes into fenced blocks whose fence is longer than
any in the text, or through `inline`, so that no model output or name can change the page around it; the front
matter is written by a YAML dumper.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from preftune.errors import PreftuneError
from preftune.report import preference_words, verdicts, words
from preftune.report.answers import read_whole
from preftune.report.examples import generations
from preftune.report.markdown import fenced, inline
from preftune.report.read import Run, short_path
from preftune.report.usage import is_adapter, usage

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def write_model_card(folder: Path) -> Path:
    """Write `README.md` into a run folder.

    Args:
        folder: a run folder (see docs/architecture.md), finished or not.

    Returns:
        The path of the card.

    Raises:
        UsageError: the folder holds no run.
        PreftuneError: the card can't be written there.
    """
    run = read_whole(folder)
    path = folder / "README.md"
    temporary = folder / "README.md.part"
    try:
        temporary.write_bytes(_card(run).encode("utf-8", errors="backslashreplace"))
        temporary.replace(path)
    except OSError as error:
        raise PreftuneError(f"can't write {path}: {error}; free some space or make the folder writable") from error
    return path


def _card(run: Run) -> str:
    rows = verdicts.compare(run)
    _, sentence, why = verdicts.headline(run, rows)
    parts = [
        f"---\n{yaml.safe_dump(_front_matter(run), sort_keys=False, allow_unicode=True, width=10_000)}---",
        f"# {inline(run.name)}",
        inline(sentence) + " " + inline(why),
        "## What was trained",
        _trained(run),
    ]
    if rows:
        parts += ["## Before and after", _table(rows)]
        hints = [f"- {inline(row.title)}: {inline(row.hint)}" for row in rows if row.hint]
        parts += ["\n".join(hints)] if hints else []
    parts += ["## Certificate", _certificate(run)]
    if (run.folder / "final").is_dir():
        parts += ["## Use", usage(run)]
    parts += generations(run)
    if run.recipe_text:
        parts += ["## Recipe", f"`preftune run recipe.yaml` repeats the run.\n\n{fenced(run.recipe_text, 'yaml')}"]
    if run.advice:
        said = [f"- step {step}: {inline(saw)} Try: {inline(change)}" for step, saw, change in run.advice]
        parts += ["## Advice from the run", "\n".join(said)]
    parts.append("The curves, more samples and the environment are in `report.html` of the run folder.")
    return "\n\n".join(parts) + "\n"


def _front_matter(run: Run) -> dict[str, Any]:
    """The Hub's metadata; a key is there only when the run knows it."""
    out: dict[str, Any] = {}
    adapter = is_adapter(run)
    # `a/b` may be a folder as well: relative to here, or to where the run was started.
    local = any((parent / run.model).exists() for parent in (Path(), *run.folder.resolve().parents))
    if HUB_ID.fullmatch(run.model) and not local:
        out["base_model"] = run.model
        out["base_model_relation"] = "adapter" if adapter else "finetune"
    kind = ["reward-model"] if preference_words.is_score(run) else []
    out["library_name"] = "peft" if adapter else "transformers"
    out["pipeline_tag"] = "text-classification" if preference_words.is_score(run) else "text-generation"
    out["tags"] = list(dict.fromkeys(["preftune", run.method, *kind, *(["lora"] if adapter else [])]))
    data = run.recipe.get("data")
    paths = [source.get("path") for source in data if isinstance(source, dict)] if isinstance(data, list) else []
    # A name with a file's ending is a file of the user's, not a data set on the Hub.
    known = [p for p in paths if isinstance(p, str) and "/" in p and HUB_ID.fullmatch(p) and not Path(p).suffix]
    if known:
        out["datasets"] = known
    return out


def _trained(run: Run) -> str:
    adapter = is_adapter(run)
    name = inline(run.short_model) if run.model else "the base model"
    what = f"A LoRA adapter for {name}" if adapter else f"All weights of {name}"
    given = run.recipe.get("model")
    if not adapter and isinstance(given, dict) and given.get("lora") is not None:
        what = f"A LoRA adapter for {name}, merged into the whole model"
    kind = ": a reward model, which gives a prompt and a completion one score" if preference_words.is_score(run) else ""
    lines = [f"- {what}, by {inline(run.method)} with preftune{kind}."]
    lines += [f"- {inline(fact)}" for fact in preference_words.facts(run)]
    best = f"; the best checkpoint is from step {run.best_step}" if run.best_step is not None else ""
    lines.append(f"- {run.last_step:,} optimizer steps{best}. Status: {inline(run.status_detail or run.status)}.")
    rewards = run.recipe.get("rewards")
    names = [r for r in rewards if isinstance(r, dict)] if isinstance(rewards, list) else []
    if names and not preference_words.is_score(run):
        said = ", ".join(f"{_reward(r)} × {inline(r.get('weight', 1.0))}" for r in names)
        lines.append(f"- Rewards and weights: {said}.")
    lines += _critic(run)
    lines += [
        f"- Rows{' for ' + inline(split) if split else ''}: {inline(text)}." for split, text in run.counts.items()
    ]
    return "\n".join(lines)


def _reward(reward: dict[str, Any]) -> str:
    """A reward's name, and the model behind it: a reward model or a judge."""
    name, args = inline(reward.get("name", "?")), reward.get("args")
    given = args if isinstance(args, dict) else {}
    model = given.get("path") or given.get("model")
    return f"{name} ({inline(short_path(model))})" if isinstance(model, str) and model else name


def _critic(run: Run) -> list[str]:
    """One line on GMPO's critic; none for other methods."""
    settings = run.recipe.get("gmpo")
    critic = settings.get("critic") if isinstance(settings, dict) else None
    if run.method != "gmpo" or not isinstance(critic, dict) or critic.get("kind") == "none":
        return []
    truth = critic.get("truth")
    learnt = f"it learnt from the reward {inline(truth)}" if truth else "it was not trained"
    return [
        f"- Scored by a generative critic, an adapter on the same base, which explains each answer first; {learnt}."
    ]


def _table(rows: list[verdicts.Comparison]) -> str:
    out = ["| rows | metric | before | after | change on the same rows |", "|---|---|---|---|---|"]
    for row in rows:
        found = row.after or row.before
        cells = [f"{row.split} ({found.n if found else 0})", row.title]
        for interval in (row.before, row.after):
            value = words.number(interval.value, percent=row.percent) if interval else "–"
            cells.append(f"{value} ({words.span(interval, percent=row.percent)})" if interval else value)
        change = f"{row.change} ({words.span(row.difference, percent=row.percent)})" if row.difference else "–"
        out.append("| " + " | ".join(inline(cell) for cell in (*cells, change)) + " |")
    return "\n".join(out) + "\n\nIn parentheses: 95 % intervals."


def _certificate(run: Run) -> str:
    if not run.checks:
        return "No certificate was written."
    verdict = {True: "Passed", False: "**Failed**", None: "Not judged"}[run.certificate_passed]
    said = "; ".join(
        f"{c.name} {words.number(c.value, digits=2)} ({'over' if c.passed is False else 'tolerance'} "
        f"{words.number(c.tolerance)})"
        for c in run.checks
    )
    return f"{verdict} in {inline(run.precision or 'unknown precision')}: {inline(said)}."
