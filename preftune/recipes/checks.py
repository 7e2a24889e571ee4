"""What a recipe must be beyond its types, checked for every stage before the first one starts. No torch here."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from preftune.config import DataStage, Pipeline, Recipe
from preftune.errors import UsageError
from preftune.recipes.problems import Problems, Stage
from preftune.recipes.schema import Path, keys_of, nearest
from preftune.recipes.sources import (
    Earlier,
    answers,
    collecting,
    construct_of,
    contests,
    step_references,
    unknown_stage,
)
from preftune.recipes.steps import STAGE_REF, STEPS, is_step, references

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_NAME_RULE = "a name becomes a folder: letters, digits, `-`, `_` and `.` only, starting with a letter or digit"


def check_stage_names(stages: list[Stage], problems: Problems) -> None:
    """Stage names are folders and the first part of flags, so they must be unique and no section's name."""
    first: dict[str, int] = {}
    steps = {method for stage in stages if is_step(method := stage.merged.get("method"))}
    for stage in stages:
        path: Path = ("stages", stage.index if stage.index is not None else 0, "name")
        if stage.name in first:
            problems.add(f"two stages are named {stage.name!r}; give each its own name", path)
        elif stage.name in {*keys_of(Recipe), "stages"}:
            problems.add(f"{stage.name!r} is a section's name, so --{stage.name}.… would be ambiguous", path)
        elif stage.name in steps and stage.merged.get("method") != stage.name:
            said = f"{stage.name!r} is another stage's method, so --{stage.name}.… would be ambiguous"
            problems.add(said, path)
        elif "." in stage.name or stage.name.isdigit():
            problems.add(
                f"{stage.name!r} can't stand in a flag (--NAME.train.steps): no dots, not a number alone", path
            )
        elif not _NAME.fullmatch(stage.name):
            problems.add(f"got {stage.name!r}; {_NAME_RULE}", path)
        first.setdefault(stage.name, len(first))


def check_pipeline(pipeline: Pipeline, *, has_functions: bool = False) -> Iterator[tuple[int, Path, str]]:
    """Yields (stage index, path, message) for everything wrong. `has_functions`: rewards come as functions too."""
    if not _NAME.fullmatch(pipeline.name):
        yield 0, ("name",), f"got {pipeline.name!r}; {_NAME_RULE}"
    yield from _round_names(pipeline)
    unread = [_unread(recipe) if isinstance(recipe, Recipe) else {} for recipe in pipeline.stages]
    for index, recipe in enumerate(pipeline.stages):
        earlier = {stage.name: stage for stage in pipeline.stages[:index]}
        if isinstance(recipe, DataStage):
            for path, message in (*answers(recipe, earlier), *step_references(recipe, earlier)):
                yield index, path, message
            continue
        for path, message in (
            *_method(recipe),
            *_length(recipe),
            *_rewards(recipe, has_functions),
            *_lone_answers(recipe, has_functions),
            *contests(recipe),
            *collecting(recipe),
            *answers(recipe, earlier),
            *_policy(recipe),
            *_rounds(recipe),
            *_loss(recipe),
            *_measuring(recipe),
            *_references(recipe, earlier),
            *_adapter(recipe, earlier),
        ):
            yield index, path, message
        for path, message in unread[index].items():
            # What a stage inherits from the recipe's top level may be meant for another stage alone.
            meant = any(
                _value(other, path) == _value(recipe, path) and path not in unread[n]
                for n, other in enumerate(pipeline.stages)
                if n != index and isinstance(other, Recipe)
            )
            if not meant:
                yield index, path, message


def _round_names(pipeline: Pipeline) -> Iterator[tuple[int, Path, str]]:
    """Rounds are stages NAME-1, NAME-2, …, so no other stage may have such a name."""
    names = {stage.name for stage in pipeline.stages}
    for index, stage in enumerate(pipeline.stages):
        repeat = stage.repeat if isinstance(stage, Recipe) else 1
        rounds = {f"{stage.name}-{k}" for k in range(1, repeat + 1)} if repeat > 1 else set()
        for name in sorted(rounds & names):
            yield index, ("repeat",), f"its rounds are stages {stage.name}-1, …, and a stage is named {name} already"


def _value(recipe: Recipe, path: Path) -> Any:
    here: Any = recipe
    for part in path:
        here = getattr(here, str(part))
    return here


def _method(recipe: Recipe) -> Iterator[tuple[Path, str]]:
    from preftune.methods import METHODS

    if recipe.method in STEPS:
        yield (
            ("method",),
            f"{recipe.method} makes data: it is a stage beside others (stages: [{{name: …, method: {recipe.method}, "
            f"{recipe.method}: {{…}}}}, …]), or the command preftune data {recipe.method}",
        )
    elif recipe.method not in METHODS:
        close = nearest(recipe.method, [*METHODS, *STEPS])
        hint = f"did you mean {close}?" if close else f"methods: {', '.join(METHODS)}; on data: {', '.join(STEPS)}"
        yield ("method",), f"no method is named {recipe.method!r}; {hint}"


def _length(recipe: Recipe) -> Iterator[tuple[Path, str]]:
    if recipe.train.steps is None and recipe.train.epochs is None:
        yield ("train",), "how long to train is missing; give train.steps or train.epochs"
    until = recipe.train.until
    if until is None or not until.metric.startswith(("validation/", "test/")):
        return
    place: Path = ("train", "until", "metric")
    if until.metric.startswith("test/"):
        yield place, "test rows are measured before and after training only; watch validation/… instead"
    elif recipe.eval.every is None:
        yield place, f"{until.metric} is measured once training is over, unless eval.every says how often; give it"
    elif not recipe.eval.data and not recipe.eval.holdout:
        yield place, f"{until.metric} needs validation rows; give eval.data or eval.holdout"


def _rewards(recipe: Recipe, has_functions: bool) -> Iterator[tuple[Path, str]]:
    from preftune.methods import METHODS, needs_rewards
    from preftune.rewards import BUILTINS
    from preftune.rewards.builtins import make_builtins

    construct, problem = construct_of(recipe)
    if problem:
        yield ("competition",), problem
        return

    method = METHODS.get(recipe.method)
    # A file of scored answers serves the first round; the policies of later ones answer anew.
    later = method is not None and method.scored and method.completions == "collected" and recipe.repeat > 1
    if method is not None and (later or needs_rewards(recipe)) and not recipe.rewards and not has_functions:
        yield (
            ("rewards",),
            f"method {recipe.method} needs at least one reward: a built-in ({', '.join(BUILTINS)}), "
            "module:function or file.py:function",
        )
    for index, reward in enumerate(recipe.rewards):
        if reward.name in BUILTINS:
            try:
                list(make_builtins(reward, construct))
            except UsageError as error:
                yield ("rewards", index, "args"), str(error)
        elif ":" not in reward.name:
            close = nearest(reward.name, BUILTINS)
            hint = f"did you mean {close}?" if close else f"built-ins: {', '.join(BUILTINS)}"
            yield (
                ("rewards", index, "name"),
                f"no built-in reward is named {reward.name!r}; {hint} (your own: module:function or file.py:function)",
            )


def _lone_answers(recipe: Recipe, has_functions: bool) -> Iterator[tuple[Path, str]]:
    """Measuring draws one answer per prompt, which a judge that compares says nothing of."""
    rows = recipe.eval
    if has_functions or not recipe.rewards or not (rows.data or rows.test or rows.holdout):
        return
    modes = [reward.args.get("mode", "pairwise") if reward.name == "judge" else "" for reward in recipe.rewards]
    if all(mode in ("pairwise", "listwise") for mode in modes):
        yield (
            ("rewards", 0, "args", "mode"),
            f"a {modes[0]} judge compares answers to one prompt, and eval draws one answer to each; give a reward "
            "beside it that scores an answer alone (a pointwise judge, a rule; weight 0 measures it), or no eval rows",
        )


def _rounds(recipe: Recipe) -> Iterator[tuple[Path, str]]:
    """What `repeat` can't keep: a reference is named by a path, without a revision."""
    first = recipe.repeat > 1 and recipe.collect.reference == "first" and recipe.model.reference_path is None
    if first and recipe.model.revision is not None and recipe.model.lora is None:
        yield (
            ("model", "revision"),
            "with collect.reference: first later rounds load the first model by its path alone; give the folder of "
            "that revision as model.path",
        )


def _policy(recipe: Recipe) -> Iterator[tuple[Path, str]]:
    from preftune.methods import objective

    try:
        chosen = objective(recipe.policy)
    except UsageError as error:
        # its message begins with the field: policy.preset 'x' is none of …
        where, _, what = str(error).partition(" ")
        yield tuple(where.split(".")), what
        return
    if recipe.method == "ppo" and not chosen.needs_values:
        yield ("policy", "advantage"), "ppo is the objective with gae; for another advantage use method grpo"
    if recipe.method == "human" and chosen.needs_values:
        yield (
            ("policy", "advantage"),
            "people score whole answers, and gae needs a value head trained beside; remove it",
        )
    if recipe.policy.combine == "normalize":
        taken_off = {
            "missing_eos_penalty": recipe.policy.missing_eos_penalty > 0.0,
            "missing_eos_score": recipe.policy.missing_eos_score is not None,
            "overlong": chosen.overlong > 0.0,
            "kl": chosen.kl == "reward" and chosen.beta > 0.0,
        }
        for name in (name for name, given in taken_off.items() if given):
            yield (
                ("policy", "combine"),
                f"normalize reads each reward's own value, from which {name} takes nothing off; switch one of them "
                "off, or give the penalty as a reward",
            )
    if chosen.resample and recipe.sampling.group_size == 1:
        yield ("policy", "resample"), "replaces groups without spread, and a group of one has none; set it to 0"
    whole = recipe.model.lora is None and recipe.model.on_adapter != "continue"
    if recipe.gmpo.critic.lora is not None and whole:
        yield ("gmpo", "critic", "lora"), "the critic is an adapter beside the policy's: give model.lora too"
    if recipe.value.lora is not None and whole:
        yield ("value", "lora"), "the value head has an adapter only beside the policy's: give model.lora, or remove it"
    if recipe.method == "gmpo" and recipe.gmpo.critic.kind == "generative" and whole:
        yield (
            ("model", "lora"),
            "gmpo's critic and policy are two adapters on one frozen base; give model.lora (r 4 to 16), or "
            "gmpo.critic.kind: none with rewards",
        )


def _loss(recipe: Recipe) -> Iterator[tuple[Path, str]]:
    """A known loss that has the fields it was given."""
    from preftune.methods import METHODS, preference

    method = METHODS.get(recipe.method)
    if method is None or method.compares is None:
        return
    try:
        preference(recipe)
    except UsageError as error:
        where, _, what = str(error).partition(" ")
        yield tuple(where.split(".")), what
    if recipe.train.reference_logprobs == "live" and recipe.train.reference_cache is not None:
        yield ("train", "reference_cache"), "reference_logprobs: live keeps nothing; remove one of the two"
    if recipe.loss.p_max is None:
        for name in ("g_max", "generator"):
            if getattr(recipe.loss, name) != type(recipe.loss).model_fields[name].default:
                yield ("loss", name), "belongs to p_max, which is not given; give loss.p_max, or remove it"


def _unread(recipe: Recipe) -> dict[Path, str]:
    """Fields that were given and that this method never looks at, and why."""
    from preftune.methods import METHODS, preference
    from preftune.recipes.reads import given_unread

    method = METHODS.get(recipe.method)
    if method is None:
        return {}
    out: dict[Path, str] = {}
    try:
        out.update(given_unread(method, recipe))
        compares = method.needs_reference(recipe)
    except UsageError:
        return out  # the loss or the policy is wrong, and said so above
    if not compares:
        instead = f"method {recipe.method} with beta 0"
        if method.compares is not None:
            instead = f"loss {preference(recipe).name}"
        for section, field in (
            ("train", "reference_logprobs"), ("train", "reference_cache"), ("model", "reference_path"),
        ):  # fmt: skip
            chosen = getattr(recipe, section)
            if field == "reference_cache" and recipe.loss.p_max is not None:
                continue  # the generator's log-probs are kept there
            if getattr(chosen, field) != type(chosen).model_fields[field].default:
                out.setdefault((section, field), f"{instead} compares with no reference; remove it")
    return out


def _measuring(recipe: Recipe) -> Iterator[tuple[Path, str]]:
    """Settings of `eval` that nothing would read, and a metric that there will not be."""
    from preftune.methods import METHODS

    rows = recipe.eval
    titles = [one.title for one in rows.benchmarks]
    for index, title in enumerate(titles):
        if title in titles[:index]:
            yield ("eval", "benchmarks", index, "name"), f"two benchmarks are named {title!r}; give each its own name"
    if rows.data and rows.holdout:
        yield ("eval", "holdout"), "give either eval.data or eval.holdout, not both"
    if not rows.data and not rows.holdout:
        for key in ("every", "best", "patience"):
            if getattr(rows, key) is not None:
                yield ("eval", key), "needs validation rows; give eval.data or eval.holdout"
    elif rows.patience is not None and rows.every is None:
        yield ("eval", "patience"), "counts measurements, and eval.every is not given"
    method = METHODS.get(recipe.method)
    if rows.best is None or method is None or method.compares is None or method.completions != "data":
        return
    known = [f"rewards/{name}" for name in ("accuracy", "margin", "chosen", "rejected")]
    if method.reads == "logprobs":
        known += [f"logprobs/{name}" for name in ("accuracy", "accuracy_per_token", "chosen", "rejected")] + ["nll"]
    if rows.best not in known and not (recipe.rewards and rows.best.startswith(("reward/", "length/"))):
        close = nearest(rows.best, known)
        hint = f"did you mean {close}?" if close else f"it measures {', '.join(known)}"
        yield ("eval", "best"), f"method {recipe.method} does not measure {rows.best!r}; {hint}"


def _references(recipe: Recipe, earlier: Earlier) -> Iterator[tuple[Path, str]]:
    for where, named in references(recipe.model_dump(by_alias=True, exclude={"data", "eval"})):
        if isinstance(made := earlier.get(named.removeprefix(STAGE_REF)), DataStage):
            yield where, f"stage {made.name} makes data, and a model is wanted here"
    for field, path in (
        (("value", "path"), recipe.value.path),
        (("model", "reference_path"), recipe.model.reference_path),
        (("loss", "generator"), recipe.loss.generator),
    ):
        if path is not None and path.startswith(STAGE_REF):
            yield from unknown_stage(field, path, earlier)
    wrote = earlier.get((recipe.loss.generator or "").removeprefix(STAGE_REF))
    if wrote is not None and wrote.method == "reward":
        yield ("loss", "generator"), f"stage {wrote.name} trains a reward model, which writes no text"
    if recipe.model.path.startswith(STAGE_REF):
        yield from unknown_stage(("model", "path"), recipe.model.path, earlier)
        before = earlier.get(recipe.model.path.removeprefix(STAGE_REF))
        if before is not None and before.method == "reward" and recipe.method != "reward":
            yield ("model", "path"), f"stage {before.name} trains a reward model, which writes no text"
    for index, reward in enumerate(recipe.rewards):
        value = reward.args.get("path")
        if reward.name not in ("reward-model", "judge") or not isinstance(value, str):
            continue
        if not value.startswith(STAGE_REF):
            continue
        place: Path = ("rewards", index, "args", "path")
        yield from unknown_stage(place, value, earlier)
        before = earlier.get(value.removeprefix(STAGE_REF))
        if isinstance(before, DataStage):
            continue
        if before is not None and before.method != "reward" and reward.name == "reward-model":
            yield place, f"stage {before.name} trains with {before.method}, so it is no reward model (method reward)"
        elif before is not None and before.method == "reward" and reward.name == "judge":
            yield place, f"stage {before.name} trains a reward model, which writes no verdicts; use name: reward-model"


_ADAPTER_CHOICES = (
    "continue (train it further), stack (keep it as it is and train a new one on top), merge (fold it into its base "
    "first) or fresh (leave it out: a new one on the bare base); docs/adapters.md has what each compares with"
)


def _adapter(recipe: Recipe, earlier: Earlier) -> Iterator[tuple[Path, str]]:
    """What can be known of adapters before anything loads: choices that need others, and an earlier stage's result."""
    from preftune.methods import METHODS

    model, method = recipe.model, METHODS.get(recipe.method)
    if model.reference is not None and model.on_adapter != "continue":
        yield (
            ("model", "reference"),
            "there is a choice of reference only with on_adapter: continue; everywhere else it is the model before "
            "training. Remove it",
        )
    if model.on_adapter in ("stack", "fresh") and model.lora is None:
        yield ("model", "on_adapter"), f"{model.on_adapter} trains a new adapter; say which with model.lora"
    before = earlier.get(model.path.removeprefix(STAGE_REF)) if model.path.startswith(STAGE_REF) else None
    if isinstance(before, Recipe):
        ends_in_adapter = before.method != "reward" and (
            before.model.on_adapter == "continue"
            or (before.model.lora is not None and before.model.on_adapter != "merge")
        )
        if ends_in_adapter and model.on_adapter is None:
            said = f"stage {before.name} ends in an adapter, so say what to do with it: {_ADAPTER_CHOICES}"
            yield ("model", "on_adapter"), said
        elif not ends_in_adapter and model.on_adapter is not None:
            said = f"stage {before.name} ends in a whole model, not an adapter; remove on_adapter"
            yield ("model", "on_adapter"), said
            return
    asked = model.reference is None and model.reference_path is None
    if method is not None and model.on_adapter == "continue" and asked:
        try:
            compares = method.needs_reference(recipe)
        except UsageError:
            return  # the loss or the policy is wrong, and said so above
        if compares:
            yield (
                ("model", "reference"),
                f"method {recipe.method} compares with a reference, and the adapter is trained further: give base (the "
                "bare base, without the adapter) or start (the adapter as it is now)",
            )
