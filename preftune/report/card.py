"""`write_model_card`: README.md of a run folder, with the front matter that the Hugging Face Hub reads.

The card says only what the run folder knows. Text from the run goes into fenced blocks whose fence is longer than
any in the text, or through `_inline`, so that no model output or name can change the page around it; the front
matter is written by a YAML dumper.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import yaml

from preftune.errors import PreftuneError
from preftune.report import preference_words, samples, verdicts, words
from preftune.report.answers import read_whole
from preftune.report.read import Run

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
SHOWN = 3
LONGEST = 2000
"""Characters of a prompt or completion on the card; the report has the whole."""


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
        f"# {_inline(run.name)}",
        _inline(sentence) + " " + _inline(why),
        "## What was trained",
        _trained(run),
    ]
    if rows:
        parts += ["## Before and after", _table(rows)]
        hints = [f"- {_inline(row.title)}: {_inline(row.hint)}" for row in rows if row.hint]
        parts += ["\n".join(hints)] if hints else []
    parts += ["## Certificate", _certificate(run)]
    if (run.folder / "final").is_dir():
        parts += ["## Use", _usage(run)]
    shown = _samples(run)
    if shown:
        parts += ["## Samples", *shown]
    if run.recipe_text:
        parts += ["## Recipe", f"`preftune run recipe.yaml` repeats the run.\n\n{_fenced(run.recipe_text, 'yaml')}"]
    if run.advice:
        said = [f"- step {step}: {_inline(saw)} Try: {_inline(change)}" for step, saw, change in run.advice]
        parts += ["## Advice from the run", "\n".join(said)]
    parts.append("The curves, more samples and the environment are in `report.html` of the run folder.")
    return "\n\n".join(parts) + "\n"


def _front_matter(run: Run) -> dict[str, Any]:
    """The Hub's metadata; a key is there only when the run knows it."""
    out: dict[str, Any] = {}
    adapter = _is_adapter(run)
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


def _is_adapter(run: Run) -> bool:
    if (run.folder / "final").is_dir():
        return (run.folder / "final" / "adapter_config.json").exists()
    model = run.recipe.get("model")
    return isinstance(model, dict) and model.get("lora") is not None


def _trained(run: Run) -> str:
    adapter = _is_adapter(run)
    name = _inline(run.short_model) if run.model else "the base model"
    what = f"A LoRA adapter for {name}" if adapter else f"All weights of {name}"
    given = run.recipe.get("model")
    if not adapter and isinstance(given, dict) and given.get("lora") is not None:
        what = f"A LoRA adapter for {name}, merged into the whole model"
    kind = ": a reward model, which gives a prompt and a completion one score" if preference_words.is_score(run) else ""
    lines = [f"- {what}, by {_inline(run.method)} with preftune{kind}."]
    lines += [f"- {_inline(fact)}" for fact in preference_words.facts(run)]
    best = f"; the best checkpoint is from step {run.best_step}" if run.best_step is not None else ""
    lines.append(f"- {run.last_step:,} optimizer steps{best}. Status: {_inline(run.status_detail or run.status)}.")
    rewards = run.recipe.get("rewards")
    names = [r for r in rewards if isinstance(r, dict)] if isinstance(rewards, list) else []
    if names:
        said = ", ".join(f"{_inline(r.get('name', '?'))} × {_inline(r.get('weight', 1.0))}" for r in names)
        lines.append(f"- Rewards and weights: {said}.")
    lines += [
        f"- Rows{' for ' + _inline(split) if split else ''}: {_inline(text)}." for split, text in run.counts.items()
    ]
    return "\n".join(lines)


def _table(rows: list[verdicts.Comparison]) -> str:
    out = ["| rows | metric | before | after | change on the same rows |", "|---|---|---|---|---|"]
    for row in rows:
        found = row.after or row.before
        cells = [f"{row.split} ({found.n if found else 0})", row.title]
        for interval in (row.before, row.after):
            value = words.number(interval.value, percent=row.percent) if interval else "–"
            cells.append(f"{value} ({words.span(interval, percent=row.percent)})" if interval else value)
        change = f"{row.change} ({words.span(row.difference, percent=row.percent)})" if row.difference else "–"
        out.append("| " + " | ".join(_inline(cell) for cell in (*cells, change)) + " |")
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
    return f"{verdict} in {_inline(run.precision or 'unknown precision')}: {_inline(said)}."


def _reward_usage(run: Run) -> str:
    """A snippet for a reward model in plain transformers, with its normalisation where the model carries one."""
    prompt, completion = "Your prompt", "An answer to it"
    texts = run.answers.texts if run.answers is not None else {}
    first = next(iter(texts.values()), None)
    if first is not None and len(first.prompt) + len(first.text) <= 600:
        prompt, completion = first.prompt, first.text
    normal = normalization(run)
    code = [
        "import torch",
        "from transformers import AutoModelForSequenceClassification, AutoTokenizer",
        "",
        'tokenizer = AutoTokenizer.from_pretrained("final")',
        'model = AutoModelForSequenceClassification.from_pretrained("final").eval()',
        f"prompt = {json.dumps(prompt)}",
        f"completions = [{json.dumps(completion)}, {json.dumps('Another one.')}]",
        "texts = [prompt + completion + tokenizer.eos_token for completion in completions]",
        'inputs = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)',
        "with torch.no_grad():",
        "    scores = model(**inputs).logits[:, 0]  # one raw score each; higher is better",
    ]
    if normal is not None:
        code.append("scores = (scores - model.config.preftune_reward_mean) / model.config.preftune_reward_std")
    code.append("print(scores.tolist())")
    text = (
        "`final/` is a sequence classifier with one label; on the Hub its place is the repository's own id. Scores of "
        "one prompt compare its completions; across prompts they need not mean the same. With a chat model, write the "
        "prompt with `tokenizer.apply_chat_template(…, add_generation_prompt=True, tokenize=False)`, and end a "
        "completion as the template ends a turn. A plain prompt begins with `tokenizer.bos_token` where the "
        "tokenizer adds one.\n\n"
    )
    if normal is not None:
        text += (
            f"Raw scores on the training set have mean {words.number(normal[0])} and standard deviation "
            f"{words.number(normal[1])}; both are in the model's config.\n\n"
        )
    elif run.answers is not None:
        text += "The scores are raw: no scale was recorded (`train.normalize: true` records one).\n\n"
    return text + _fenced("\n".join(code), "python")


def normalization(run: Run) -> tuple[float, float] | None:
    """Mean and standard deviation that a reward model's config carries; None without them."""
    try:
        config = json.loads((run.folder / "final" / "config.json").read_text(encoding="utf-8"))
        mean, std = float(config["preftune_reward_mean"]), float(config["preftune_reward_std"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return (mean, std) if math.isfinite(mean) and math.isfinite(std) and std > 0 else None


def _usage(run: Run) -> str:
    """A snippet for plain transformers or peft. Paths are written as Python literals (JSON strings are)."""
    if preference_words.is_score(run):
        return _reward_usage(run)
    base = json.dumps(run.model or "BASE MODEL")
    if _is_adapter(run):
        load = [
            "from peft import PeftModel",
            "from transformers import AutoModelForCausalLM, AutoTokenizer",
            "",
            'tokenizer = AutoTokenizer.from_pretrained("final")',
            f"base = AutoModelForCausalLM.from_pretrained({base})",
            'model = PeftModel.from_pretrained(base, "final")',
        ]
    else:
        load = [
            "from transformers import AutoModelForCausalLM, AutoTokenizer",
            "",
            'tokenizer = AutoTokenizer.from_pretrained("final")',
            'model = AutoModelForCausalLM.from_pretrained("final")',
        ]
    texts = run.answers.texts.values() if run.answers is not None else ()
    shown = next((s.prompt for s in (*run.samples, *texts) if s.prompt), "Your prompt")
    prompt = shown if len(shown) <= 300 else "Your prompt"
    load += [
        f"prompt = {json.dumps(prompt)}",
        'inputs = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)',
        "out = model.generate(**inputs, max_new_tokens=256)",
        'print(tokenizer.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))',
    ]
    text = "`final/` is the trained model; on the Hub its place is the repository's own id.\n\n"
    return text + _fenced("\n".join(load), "python")


def _samples(run: Run) -> list[str]:
    out = []
    for item in (samples.over_time(run) or samples.in_training(run))[:SHOWN]:
        last = item.samples[-1]
        score = f", score {words.number(last.score)}" if last.score is not None else ""
        out.append(
            f"Prompt ({_inline(item.split)} row {_inline(item.where or '?')}):\n\n{_fenced(_cut(item.prompt))}\n\n"
            + (f"True answer:\n\n{_fenced(_cut(item.answer))}\n\n" if item.answer else "")
            + f"Step {last.step}{score}:\n\n{_fenced(_cut(last.completion))}"
        )
    return out


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}\n[{len(text) - LONGEST:,} more characters]"


def _fenced(text: str, language: str = "text") -> str:
    """A code block that its text can't end: the fence is longer than any run of backticks inside."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def _inline(value: object) -> str:
    """One line of plain text: Markdown's and HTML's own characters are escaped, plain names in backticks stay code."""
    parts = re.split(r"(`[\w./-]+`)", " ".join(str(value).split()))
    return "".join(part if index % 2 else _escaped(part) for index, part in enumerate(parts))


def _escaped(text: str) -> str:
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    # An underscore inside a word means nothing to Markdown, and reads better bare.
    return re.sub(r"([\\*{}\[\]#|!~`]|(?<!\w)_|_(?!\w))", r"\\\1", text)
