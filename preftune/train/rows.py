"""From a recipe's sources to the groups a run trains and measures on."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from preftune.competition import Construct
from preftune.config import Recipe, SourceConfig, TokensConfig
from preftune.data import as_prompts, best_of, load_examples
from preftune.errors import DataError
from preftune.judges.contests import is_contest, question_of, rows_of
from preftune.methods import Method
from preftune.models import Policy
from preftune.records import Example, Group, TokenCounts
from preftune.tokens import TokenContract
from preftune.train.stored import StoredGroups
from preftune.train.trace import without_system
from preftune.train.workers import tokenised

Splits = dict[str, Sequence[Group]]
"""train, validation and test."""


class Kept(Protocol):
    """Where the groups of a split go as they are tokenised."""

    def append(self, group: Group) -> None: ...


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of one split as loaded, before any tokenizer."""

    examples: list[Example]
    content_hash: str = ""
    origins: tuple[str, ...] = ()
    skipped: int = 0
    notes: tuple[str, ...] = ()

    @property
    def facts(self) -> dict[str, object]:
        return {"content_hash": self.content_hash, "origins": list(self.origins), "skipped": self.skipped}


def read_splits(recipe: Recipe, base_dir: Path | None) -> dict[str, Rows]:
    """Load every source of the recipe. Raises DataError as `load_examples` does."""
    sources = {"train": recipe.data, "validation": recipe.eval.data, "test": recipe.eval.test}
    return {name: _read(with_system(some, recipe), recipe, base_dir) for name, some in sources.items()}


def construct_of(recipe: Recipe) -> Construct | None:
    """The contest that the recipe describes. Raises UsageError for one whose tags can't be told apart."""
    return None if recipe.competition is None else Construct.of(recipe.competition)


def with_system(sources: Sequence[SourceConfig], recipe: Recipe) -> list[SourceConfig]:
    """The sources with the contest's system prompt, where the recipe describes a contest and a source has none."""
    construct = construct_of(recipe)
    if construct is None or not construct.system_prompt:
        return list(sources)
    told = {"system": construct.system_prompt}
    # The rows of contests are prompts of their own: preftune.judges.contests puts it where it belongs.
    own = [one.system is not None or one.contest is not None for one in sources]
    return [one if has else one.model_copy(update=told) for one, has in zip(sources, own, strict=True)]


def _read(sources: Sequence[SourceConfig], recipe: Recipe, base_dir: Path | None) -> Rows:
    """Rows as they are, mixed, and behind them the contests that are made of the others."""
    plain = [source for source in sources if source.contest is None]
    made = [source for source in sources if source.contest is not None]
    loaded = [load_examples(plain, seed=recipe.seed, base_dir=base_dir)] if plain else []
    loaded += [load_examples([source], seed=recipe.seed, base_dir=base_dir) for source in made]
    if not loaded:
        return Rows([])
    rows = list(loaded[0].examples) if plain else []
    notes: list[str] = []
    if made:
        parts = zip(made, (one.examples for one in loaded[-len(made) :]), strict=True)
        contests, notes = rows_of(list(parts), recipe.seed, construct_of(recipe))
        rows += contests
    digest = loaded[0].content_hash
    if len(loaded) > 1:
        digest = hashlib.sha256("".join(one.content_hash for one in loaded).encode()).hexdigest()
    origins = tuple(origin for one in loaded for origin in one.origins)
    return Rows(rows, digest, origins, sum(one.skipped for one in loaded), tuple(notes))


def with_template(config: TokensConfig, base_dir: Path | None) -> TokensConfig:
    """A relative .jinja file is looked up beside the recipe first, as data files are."""
    name = config.chat_template
    if base_dir is None or name is None or not name.endswith(".jinja") or not (base_dir / name).is_file():
        return config
    return config.model_copy(update={"chat_template": str(base_dir / name)})


def tokenise(
    loaded: dict[str, Rows], recipe: Recipe, method: Method, contract: TokenContract, policy: Policy,
    into: Callable[[str], Kept] | None = None,
) -> tuple[Splits, dict[str, TokenCounts], list[str]]:  # fmt: skip
    """Cut off the held-out rows, choose what the method uses of each row, and tokenise.

    Args:
        into: takes the name of each split, in order, and gives what its groups are appended to; they are not returned.

    Returns:
        The splits, what the token contract did to each, and sentences about rows that the method can't use.

    Raises:
        DataError: rows that the method can't use at all, or as the token contract raises.
    """
    examples = {name: rows.examples for name, rows in loaded.items()}
    if recipe.eval.holdout and not examples["validation"]:
        examples["train"], examples["validation"] = hold_out(examples["train"], recipe, method)
    splits: Splits = {}
    counts: dict[str, TokenCounts] = {}
    notes = [f"{name}: {note}" for name, rows in loaded.items() for note in rows.notes]
    examples["train"], said = apart(examples)
    notes += said
    if recipe.collect.trace == "winner":  # they are measured as they are trained
        construct = construct_of(recipe)
        for name in ("validation", "test"):
            examples[name] = [replace(row, prompt=without_system(row.prompt, construct)) for row in examples[name]]
    for name, rows in examples.items():
        if name != "train" and recipe.eval.limit is not None:
            rows = rows[: recipe.eval.limit]
        keep = None if into is None else into(name).append
        if not rows:
            splits[name] = []
            continue
        rows, said = _as_used(rows, recipe, method)
        notes += [f"{name}: {sentence}" for sentence in said]
        whole = method.completions == "data"
        splits[name], counts[name] = contract.prepare(
            rows, with_completions=whole, context_length=policy.context_length,
            max_new_tokens=recipe.sampling.max_tokens, rows=tokenised(contract, rows, with_completions=whole),
            keep=keep,
        )  # fmt: skip
    return splits, counts, notes


def hold_out(rows: list[Example], recipe: Recipe, method: Method) -> tuple[list[Example], list[Example]]:
    """Training rows and held-out ones. A row that its source's weight repeats, or that stands in the data twice, is one
    row: never on both sides. With preferences and labels neither is a prompt, which may have several rows; nor is one
    that the policy answers. So a reward model and the PPO that follows hold out the same prompts. Contests are held out
    by their question."""
    by_prompt = bool(method.compares) or method.completions != "data"

    def content(row: Example) -> Hashable:
        if is_contest(row):
            return question_of(row)
        return row.prompt, () if by_prompt else row.completions

    different = list({content(row): None for row in reversed(rows)})[::-1]
    held_out = recipe.eval.holdout
    if held_out >= len(different):
        what = "questions" if any(map(is_contest, rows)) else "prompts" if by_prompt else "ones"
        raise DataError(
            f"eval.holdout {held_out} leaves no training row: the data has {len(different)} different {what}"
        )
    order = list(range(len(different)))
    random.Random(f"{recipe.seed}/holdout").shuffle(order)
    held = {different[i] for i in order[:held_out]}
    distinct = list({(row.prompt, row.completions): row for row in reversed(rows)}.values())[::-1]
    return [row for row in rows if content(row) not in held], [row for row in distinct if content(row) in held]


def apart(examples: dict[str, list[Example]]) -> tuple[list[Example], list[str]]:
    """The training rows without those on a held-out question, where contests are among the rows: a contest shows a
    question's answers, so nobody may learn from one what another is measured on. And what was left out, in words.

    Raises:
        DataError: nothing else is there.
    """
    train, held = examples["train"], [*examples["validation"], *examples["test"]]
    if not held or not any(map(is_contest, (*train, *held))):
        return train, []
    questions = {question_of(row) for row in held}
    kept = [row for row in train if question_of(row) not in questions]
    if not kept:
        raise DataError(
            f"{train[0].where}: every training row is on a question of the held-out rows (eval.data, eval.test); give "
            "other questions there"
        )
    left = len(train) - len(kept)
    return kept, [f"train: {left} rows left out, as their questions are held out"] if left else []


def _as_used(rows: list[Example], recipe: Recipe, method: Method) -> tuple[list[Example], list[str]]:
    """Each row as the method uses it, and what was left out, in words."""
    if method.completions != "data":
        return as_prompts(rows), []
    if method.name == "gmpo":
        return _offline(rows, recipe)
    if method.compares is None:
        # A row's only completion may be marked as bad; of several, the best is what there is to imitate.
        limit = recipe.loss.label_threshold
        good = [row for row in rows if len(row.scores) != 1 or row.scores[0] >= limit]
        if not good:
            raise DataError(f"{rows[0].where}: no row has a completion to imitate: all are marked as undesirable")
        dropped = len(rows) - len(good)
        said = [f"{dropped} rows left out whose completions are marked as undesirable"] if dropped else []
        return [best_of(row) for row in good], said
    for row in rows:
        if not row.scores:
            label = row.columns.get("label")
            if method.compares == "labels" and row.completions and label is not None:
                raise DataError(
                    f"{row.where}: column 'label' holds {str(label)[:40]!r}, but a label is true, false or a number. "
                    "Map its words: data.columns: {label: {from: label, replace: [['^good$', '1'], "
                    "['^bad$', '0']]}}"
                )
            wanted = (
                "chosen and rejected, or responses with scores"
                if method.compares == "pairs"
                else "completion and label"
            )
            raise DataError(
                f"{row.where}: {method.name} learns from {'preferences' if method.compares == 'pairs' else 'labels'}, "
                f"and this row has none: it needs {wanted}; map them with data.columns or data.responses"
            )
    if method.compares == "labels":
        return rows, []
    kept = [row for row in rows if len(set(row.scores)) > 1]
    if not kept:
        hint = "; rows with one labelled completion each are for method kto" if len(rows[0].completions) == 1 else ""
        raise DataError(f"{rows[0].where}: no row has two completions of different score, so there is no pair{hint}")
    left = len(rows) - len(kept)
    return kept, [f"{left} rows left out whose completions all have the same score"] if left else []


def _offline(rows: list[Example], recipe: Recipe) -> tuple[list[Example], list[str]]:
    """GMPO's fixed answers: with a score each where no critic gives one."""
    for row in rows:
        if not row.completions:
            raise DataError(f"{row.where}: gmpo.answers is data, and this row has no answer; map a completion column")
        if recipe.gmpo.critic.kind == "none" and not recipe.rewards and not row.scores:
            raise DataError(
                f"{row.where}: gmpo.critic.kind is none, so every answer needs a score, and this row has none. Map it "
                "(label, or data.responses with a score), or give rewards"
            )
    return rows, []


def check_vocabulary(policy: Policy, splits: Splits) -> None:
    """A tokenizer that knows more ids than the model has rows would fail inside the embedding, without a name."""
    rows = policy.base.get_input_embeddings().weight.shape[0]
    for groups in splits.values():
        if isinstance(groups, StoredGroups) and groups.highest < rows:
            continue
        for group in groups:
            highest = max(
                (max(ids, default=0) for ids in (group.prompt.ids, *(c.ids for c in group.completions))), default=0
            )
            if highest >= rows:
                raise DataError(
                    f"{group.prompt.where}: token id {highest} is outside the model's {rows} embeddings; "
                    "the tokenizer does not belong to this model"
                )


def label_balance(groups: Sequence[Group], threshold: float) -> tuple[int, int]:
    """How many completions are desirable, and how many are not."""
    if isinstance(groups, StoredGroups) and (found := groups.desirable(threshold)) is not None:
        return found, groups.lengths.answers - found
    scores = [score for group in groups for score in group.scores]
    good = sum(score >= threshold for score in scores)
    return good, len(scores) - good


def balanced_weight(good: int, bad: int, undesirable_weight: float) -> float:
    """λ_D that brings λ_D·n_D : λ_U·n_U into [1, 4/3], and 1 where it lies there already (METHODS; the KTO paper).

    Raises:
        DataError: all labels are equal.
    """
    if not good or not bad:
        raise DataError(
            f"loss.desirable_weight: auto needs both labels in the training rows, which have {good} desirable and "
            f"{bad} undesirable completions; check the label column and loss.label_threshold"
        )
    fair = undesirable_weight * bad / good
    return min(max(1.0, fair), fair * 4 / 3)
