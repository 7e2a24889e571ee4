"""The recommended method as a recipe that runs as it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from preftune.config import SourceConfig
from preftune.curation.advise.choose import Choice, Verdict
from preftune.curation.advise.config import AdviseConfig
from preftune.curation.advise.facts import REWARD, Facts
from preftune.recipes import resolve
from preftune.recipes.yamltext import dump_yaml

MODELS = {
    "unknown": "Qwen/Qwen2.5-0.5B-Instruct",
    "none": "Qwen/Qwen2.5-0.5B-Instruct",
    "one": "Qwen/Qwen2.5-1.5B-Instruct",
    "cluster": "Qwen/Qwen2.5-7B-Instruct",
}
"""What the machine can hold → a model to begin with."""

TOKENS_PER_WORD = 4
"""A generous bound: it sizes limits, and rows over a limit are left out and counted."""

READ_BY_ITSELF = ("answer", "tests")
"""Columns that a reward reads without being told."""

SYSTEM = "Think step by step, then give the final result alone between <SOLUTION> and </SOLUTION>."
"""For answers that are compared as text: without marks nobody could tell the answer from the words around it."""


def write_recipe(path: Path, verdict: Verdict, facts: Facts, config: AdviseConfig) -> dict[str, Any]:
    """Write the recipe of `verdict.best`, checked as `preftune run` checks it.

    Returns:
        The recipe as it was written.

    Raises:
        UsageError: the recipe would be wrong: a fault of the advice, told instead of a file that does not run.
    """
    raw = make_recipe(verdict.best, facts, config)
    resolve(raw, name=str(path))
    reasons = [f"#   {reason}" for reason in verdict.best.reasons]
    head = [
        f"# Written by `preftune advise`: {verdict.best.method}, because",
        *reasons,
        "#",
        "# Before it: `preftune diagnose` says whether the model needs tuning at all,",
        "# `preftune data audit` whether the rows are fit.",
        "#",
        f"#   preftune run {path.name} --dry-run       looks before you train",
        f"#   preftune run {path.name}",
        "#",
        "# Numbers are where one begins, not what is best for this data: docs/methods/ says what to watch.",
        "",
    ]
    path.write_text("\n".join(head) + "\n" + dump_yaml(raw), encoding="utf-8")
    return raw


def make_recipe(choice: Choice, facts: Facts, config: AdviseConfig) -> dict[str, Any]:
    """The recipe as plain values."""
    model = config.model or MODELS[config.gpus]
    sources = [_source(one, facts, model, choice.method, config) for one in config.data]
    shared: dict[str, Any] = {
        "name": f"advised-{choice.method}",
        "model": {"path": model, "lora": {"r": 32, "alpha": 64}},
        "data": sources or [{"path": "prompts.jsonl", "chat": True}],
        "tokens": {
            "max_prompt_tokens": _tokens(facts.prompt_words, 512),
            "max_completion_tokens": _tokens(facts.completion_words, 1024),
        },
        "eval": {"holdout": _holdout(facts)},
    }
    if not choice.stages:
        return shared | _stage(choice.method, facts, config)
    reward = {
        "name": "reward", "method": "reward",
        "train": {"epochs": 1, "batch_size": 16, "learning_rate": 1e-4, "normalize": True},
    }  # fmt: skip
    policy = {"name": choice.method, **_stage(choice.method, facts, config)}
    policy["rewards"] = [{"name": "reward-model", "args": {"path": "stage:reward"}}]
    return shared | {"stages": [reward, policy]}


def _source(source: SourceConfig, facts: Facts, model: str, method: str, config: AdviseConfig) -> dict[str, Any]:
    """The source as it was given, and a plain prompt as a user's message where the model has a chat template."""
    given: dict[str, Any] = source.model_dump(by_alias=True, exclude_defaults=True, mode="json")
    if facts.turns == 0.0 and facts.shape != "text" and not source.chat and has_chat_template(model):
        given["chat"] = True
        if method in ("grpo", "rft") and facts.check == "short text" and source.system is None:
            given["system"] = SYSTEM
    return given


def has_chat_template(model: str) -> bool:
    """Whether a model's folder holds a chat template; of a hub id its name must tell."""
    folder = Path(model).expanduser()
    if not folder.is_dir():
        return any(word in model.lower() for word in ("instruct", "chat", "-it"))
    if (folder / "chat_template.jinja").exists():
        return True
    try:
        settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return bool(settings.get("chat_template"))


def _stage(method: str, facts: Facts, config: AdviseConfig) -> dict[str, Any]:
    epochs = 3 if facts.rows < 1000 else 1
    room = {"max_tokens": _tokens(facts.completion_words, 512)}
    fixed = {"epochs": epochs, "batch_size": 16}
    match method:
        case "sft":
            return {"method": "sft", "train": fixed | {"learning_rate": 1e-4}}
        case "dpo":
            return {"method": "dpo", "train": fixed | {"learning_rate": 2e-5}}
        case "kto":
            return {"method": "kto", "loss": {"desirable_weight": "auto"}, "train": fixed | {"learning_rate": 2e-5}}
        case "grpo":
            return {
                "method": "grpo", "rewards": _rewards(facts, config), "sampling": {"group_size": 8, **room},
                "train": {"steps": 200, "batch_size": 16, "learning_rate": 1e-5},
            }  # fmt: skip
        case "rft":
            bar = {"min_score": 1.0, "spread_only": True} if facts.check is not None else {"spread_only": True}
            return {
                "method": "rft", "rewards": _rewards(facts, config), "sampling": {"group_size": 8, **room},
                "collect": bar, "train": {"epochs": 2, "batch_size": 16, "learning_rate": 5e-5},
            }  # fmt: skip
        case "ppo":
            return {
                "method": "ppo", "rewards": _rewards(facts, config), "sampling": {"group_size": 2, **room},
                "policy": {"beta": 0.05, "missing_eos_penalty": 1.0},
                "train": {"steps": 200, "batch_size": 16, "learning_rate": 2e-5},
            }  # fmt: skip
        case "iterative-dpo":
            return {
                "method": "iterative-dpo", "repeat": 3, "rewards": _rewards(facts, config),
                "sampling": {"group_size": 4, **room},
                "train": {"epochs": 1, "batch_size": 16, "learning_rate": 1e-5},
            }  # fmt: skip
        case _:
            return {
                "method": "human", "sampling": {"group_size": 4, **room},
                "human": {"raters": 2 if config.annotators == "many" else 1},
                "train": {"steps": 8, "batch_size": 16, "learning_rate": 1e-5},
            }  # fmt: skip


def _rewards(facts: Facts, config: AdviseConfig) -> list[dict[str, Any]]:
    if facts.check is not None:
        named = facts.answers not in READ_BY_ITSELF and facts.check not in ("puzzle", "constraints")
        return [{"name": REWARD[facts.check]} | ({"args": {"column": facts.answers}} if named else {})]
    if config.reward_model is not None:
        return [{"name": "reward-model", "args": {"path": config.reward_model}}]
    if config.judge is not None:
        where = "path" if "/" in config.judge or Path(config.judge).is_dir() else "model"
        # pointwise: held-out rows get one answer, which a judge that compares could not score
        return [{"name": "judge", "args": {where: config.judge, "mode": "pointwise"}}]
    # verifiable by the user's word alone: their own function is what checks
    return [{"name": "rewards.py:check"}]


def _tokens(words: float, least: int) -> int:
    """A power of two with room for texts four times as long as the mean."""
    size = least
    while size < TOKENS_PER_WORD * 4 * words and size < 8192:
        size *= 2
    return size


def _holdout(facts: Facts) -> int:
    return max(1, min(200, facts.prompts // 10)) if facts.prompts else 50
