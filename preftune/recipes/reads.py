"""Which fields of a recipe a method never looks at, and why. `preftune init` leaves them out; a recipe that gives one
is wrong, because whoever wrote it expected something of it."""

from __future__ import annotations

from collections.abc import Iterable

from preftune.config import CollectConfig, LossConfig, PolicyConfig, Recipe
from preftune.methods import BRADLEY_TERRY, KTO, PREFERENCE_LOSSES, Method, objective
from preftune.recipes.schema import Path

_SCORING = frozenset({"missing_eos_penalty", "missing_eos_score", "overlong"})
"""Fields of `policy` that change scores before anything else."""

_CONTESTS = ("data.contest", "eval.data.contest", "eval.test.contest")
"""Fields of sources, which are lists: `preftune.recipes.sources` finds those that are given."""


def unread(row: Method, recipe: Recipe | None = None) -> dict[str, str]:
    """Dotted name of a section or field → why the method does not read it.

    Args:
        recipe: a recipe of this method, for what depends on its other fields; without one, what it may read is read.
    """
    name, out = row.name, dict[str, str]()
    plain = f"method {name} does not read it"

    def add(names: Iterable[str], why: str = plain) -> None:
        out.update(dict.fromkeys(names, why))

    add(f"loss.{field}" for field in LossConfig.model_fields if field not in _loss_fields(row))
    add(*_policy_fields(row, recipe))
    if name != "ppo" and (name != "grpo" or recipe is None or not objective(recipe.policy).needs_values):
        add(["value"], "only advantages by GAE train a value head (method ppo, or policy.advantage: gae)")
    add(*_collect_fields(row))
    if name != "human":
        add(["human"])
    if name != "gmpo":
        add(["gmpo"])
    if row.completions == "data":
        add(["sampling.group_size"])
        add(_CONTESTS, f"method {name} learns from answers, and a contest is a prompt")
    if row.reads == "scores":
        answers = ["sampling", "rewards", "eval.temperature", "eval.max_tokens", "eval.benchmarks"]
        add(answers, "a reward model writes no answers")
    else:
        add(["train.normalize"], f"is for reward models; method {name} has no scores to normalise")
    if row.compares is not None or not (row.tempered or name == "gmpo"):
        add(["train.minibatches"], "parts a batch that the policy wrote; lower train.batch_size instead")
    fixed = row.completions in ("data", "collected") and row.compares is not None and row.reads == "logprobs"
    if not fixed:
        kept = ["train.reference_logprobs", "train.reference_cache"]
        if row.reads == "scores" and (recipe is None or recipe.loss.p_max is not None):
            kept.pop()  # the generator's
        add(kept, f"method {name} keeps no log-probs of a fixed data set")
    if not (fixed or row.tempered or row.completions in ("policy", "either")):
        add(["model.reference", "model.reference_path"], f"method {name} compares with no reference")
    return out


def given_unread(row: Method, recipe: Recipe) -> dict[Path, str]:
    """Of those, what this recipe gives: path → why, ending in the remedy."""
    out: dict[Path, str] = {}
    start = row.defaults
    for dotted, why in unread(row, recipe).items():
        if dotted in _CONTESTS:
            continue
        section, _, field = dotted.partition(".")
        chosen = getattr(recipe, section)
        if not field and section == "rewards":
            if chosen:
                out[(section,)] = f"{why} that rewards could score; remove them"
            continue
        fields = [field] if field else list(type(chosen).model_fields)
        for one in fields:
            info = type(chosen).model_fields[one]
            default = info.get_default(call_default_factory=True, validated_data={})
            if getattr(chosen, one) not in (default, dict(start.get(section, {})).get(one, default)):
                out[(section, one)] = f"{why}; remove it"
    return out


def _loss_fields(row: Method) -> frozenset[str]:
    if row.compares is None:
        return frozenset({"label_threshold"}) if row.name == "sft" else frozenset()
    if row.name in ("kto", "reward"):
        return (KTO if row.name == "kto" else BRADLEY_TERRY).fields | {"name"}
    return frozenset({"name"}).union(*(loss.fields for loss in PREFERENCE_LOSSES.values()))


def _policy_fields(row: Method, recipe: Recipe | None) -> tuple[list[str], str]:
    every = list(PolicyConfig.model_fields)
    if row.name in ("sft", "dpo", "kto", "reward") or (row.completions == "data" and row.name != "gmpo"):
        instead = "; its own numbers are in loss" if row.compares else ""
        why = f"method {row.name} samples nothing to train on and does not read it{instead}"
        return [f"policy.{field}" for field in every], why
    if row.name == "gmpo":
        scored = recipe is None or recipe.gmpo.critic.kind == "none"
        reads = _SCORING if scored else frozenset[str]()
        return [f"policy.{f}" for f in every if f not in reads], "method gmpo has an objective of its own, in gmpo"
    if row.name in ("iterative-dpo", "rft"):
        why = f"method {row.name} takes no policy gradient"
        return [f"policy.{field}" for field in every if field not in _SCORING], why
    if row.name == "human":
        unused = (*_SCORING, "resample", "combine", "kl_target", "kl_horizon", "sampler_cap")
        return [f"policy.{field}" for field in unused], "people's scores are taken as they are"
    return [], ""


def _collect_fields(row: Method) -> tuple[list[str], str]:
    if row.completions != "collected":
        return ["collect"], f"method {row.name} collects no answers before training"
    mine = {
        "iterative-dpo": {"margin", "reference", "held_out"},
        "rft": {"keep", "min_score", "spread_only", "trace", "held_out"},
    }
    reads = {"path"} | mine.get(row.name, set())
    others = [f"collect.{field}" for field in CollectConfig.model_fields if field not in reads]
    return others, f"method {row.name} does not read it"
