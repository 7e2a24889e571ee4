"""The built-in reward `judge`: a language model's verdict on completions, see preftune/judges."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import Any, Literal

from preftune.errors import ModelError, PreftuneError
from preftune.judges.base import Question, Usage, Verdict, Vote
from preftune.judges.config import JudgeConfig
from preftune.judges.judge import Judge
from preftune.records import Content, Message
from preftune.rewards.call import SetupError, Unscorable, column_values
from preftune.rewards.text import accepted_answers


@dataclass(frozen=True)  # no slots: the judge is kept beside the fields
class JudgeReward:
    """What a judge says of each completion, from 0 to 1.

    Rows that follow each other with one prompt are one group. `pointwise`: (score − lowest) / (highest − lowest) on the
    rubric's scale. `pairwise`: the share of the group's other completions that it beats, a tie counting ½. `listwise`:
    its rank in the group, 1 the best, 0 the worst. A completion that is alone in its group can't be compared: None.

    `reference`: column with a right answer that the judge is shown; a row without one gets no value. All other fields
    are those of `preftune.judges.JudgeConfig`. A verdict that fails is a failure of its row, never a 0.
    """

    path: str | None = None
    revision: str | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    trust_remote_code: bool = False
    chat_template_kwargs: dict[str, Any] | None = None
    model: str | None = None
    base_url: str | None = None
    key_variable: str = "OPENAI_API_KEY"
    extra_body: dict[str, Any] | None = None
    timeout: float = 120.0
    patience: float = 300.0
    backoff: float = 1.0
    mode: Literal["pairwise", "pointwise", "listwise"] = "pairwise"
    rubric: str = "quality"
    scale: tuple[int, int] | None = None
    votes: int = 1
    temperature: float | None = None
    max_tokens: int = 1024
    swap: bool = True
    cache: str | None = None
    price_input: float | None = None
    price_output: float | None = None
    concurrency: int = 8
    reference: str | None = None

    can_hang = False
    holds_model = True

    def __post_init__(self) -> None:
        self._config  # noqa: B018  wrong settings are errors of the recipe

    @cached_property
    def _config(self) -> JudgeConfig:
        from pydantic import ValidationError

        given = {
            one.name: getattr(self, one.name)
            for one in dataclasses.fields(self)
            if one.name != "reference" and getattr(self, one.name) != one.default
        }
        try:
            return JudgeConfig.model_validate(given)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"]))
            raise ValueError(f"{place}{': ' if place else ''}{first['msg'].removeprefix('Value error, ')}") from None

    def prepare(self) -> None:
        """Load the model, or the client of its endpoint, once. Raises ModelError."""
        try:
            self._judge  # noqa: B018
        except PreftuneError as error:
            raise ModelError(f"can't use its judge: {error}") from error

    @cached_property
    def _judge(self) -> Judge:
        return Judge(self._config)

    def __call__(
        self, /, prompts: list[Any], completions: list[Any], log_extra: Any, log_metric: Any, **columns: list[Any]
    ) -> list[float | Unscorable | None]:
        truths = self._truths(len(prompts), columns)
        groups = [rows for rows in _groups(prompts, truths) if self._applies(rows, truths)]
        questions = [
            Question(_content(prompts[rows[0]]), tuple(_content(completions[n]) for n in rows), truths[rows[0]])
            for rows in groups
        ]
        judge = self._judge
        before = judge.usage
        try:
            verdicts = judge.judge(questions)
        except PreftuneError as error:
            # No row can be judged: looking for one that is at fault would ask a dead endpoint again and again.
            raise SetupError(f"can't ask its judge: {error}") from error
        values: list[float | Unscorable | None] = [None] * len(prompts)
        notes: list[Any] = [None] * len(prompts)
        for rows, verdict in zip(groups, verdicts, strict=True):
            for place, row in enumerate(rows):
                score = verdict.scores[place]
                values[row] = (
                    Unscorable(f"got no verdict from its judge: {verdict.problems[place]}")
                    if score is None
                    else self._scaled(score)
                )
                notes[row] = note(verdict, place)
        log_extra("judge", notes)
        self._log(judge.usage - before, log_metric)
        return values

    def _truths(self, rows: int, columns: dict[str, list[Any]]) -> list[str | None]:
        if self.reference is None:
            return [None] * rows
        found = (accepted_answers(value) for value in column_values(self.reference, columns))
        return [" or ".join(answers) if answers else None for answers in found]

    def _applies(self, rows: list[int], truths: list[str | None]) -> bool:
        alone = len(rows) < 2 and self.mode != "pointwise"
        return not alone and (self.reference is None or truths[rows[0]] is not None)

    def _scaled(self, score: float) -> float:
        if self.mode != "pointwise":
            return score
        rubric = self._judge.rubric
        return (score - rubric.low) / (rubric.high - rubric.low)

    def _log(self, usage: Usage, log_metric: Any) -> None:
        log_metric("judge_requests", usage.requests)
        log_metric("judge_cached", usage.cached)
        log_metric("judge_failed", usage.failed)
        log_metric("judge_input_tokens", usage.input_tokens)
        log_metric("judge_output_tokens", usage.output_tokens)
        cost = usage.cost(self.price_input, self.price_output)
        if cost is not None:
            log_metric("judge_cost", cost)


def note(verdict: Verdict, answer: int) -> dict[str, Any]:
    """What a judge said of one answer, as plain values for the run's samples.

    Returns:
        `score` as in the verdict; `votes` and `failed`, how many replies it was shown in and how many held no verdict;
        `says`, the first reply with a verdict, and `seen_as`, what the answer is called in it.
    """
    mine = [vote for vote in verdict.votes if answer in vote.shown]
    first = next((vote for vote in mine if vote.scores is not None), mine[0] if mine else None)
    return {
        "score": verdict.scores[answer],
        "votes": len(mine),
        "failed": sum(vote.scores is None for vote in mine),
        "seen_as": "" if first is None else _label(first, answer),
        "says": "" if first is None else first.text,
    }


def _label(vote: Vote, answer: int) -> str:
    return "answer" if len(vote.shown) == 1 else f"answer {chr(ord('A') + vote.shown.index(answer))}"


def _groups(prompts: list[Any], truths: list[str | None]) -> Iterator[list[int]]:
    """Rows that follow each other and have one prompt, and one reference."""
    for _, rows in groupby(range(len(prompts)), lambda row: (prompts[row], truths[row])):
        yield list(rows)


def _content(value: Any) -> Content:
    if isinstance(value, str):
        return value
    return tuple(Message(message["role"], message["content"]) for message in value)
