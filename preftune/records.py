"""The records that flow through preftune. All are frozen; a field never changes meaning on the way.

    Example ──tokens──▶ Prompt (+ Completions, if the data has them) = Group
    Prompt ──sampling──▶ Group ──rewards──▶ Group with scores ──▶ engine.pack

A worked example (byte tokens shortened):

    Example(prompt="2+2=", completions=(), columns={"answer": "4"}, where="sums.jsonl:1")
    Prompt(ids=(50, 43, 50, 61), text="2+2=", content="2+2=", columns={"answer": "4"}, where="sums.jsonl:1")
    Group(prompt, (Completion(ids=(52, 0), mask=(True, True), text="4", finish="eos", score=1.0), …))

Legend of tensor-shape suffixes, used everywhere below `records`:

    T  completion tokens of a micro-batch, all completions one behind the other (no padding)
    S  completions ("sequences") of a micro-batch, in the order of their groups
    N  tokens of a packed row: prompts and completions together
    B  rows of a decoding batch
    V  vocabulary,  D  hidden size,  H  attention heads,  K  key/value heads
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

Role: TypeAlias = Literal["system", "user", "assistant", "tool"]


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: str
    content: str


Content: TypeAlias = str | tuple[Message, ...]
"""A prompt or completion before any tokenizer: plain text, or a tuple of messages."""


@dataclass(frozen=True, slots=True)
class Example:
    """One row of a data set, mapped to standard names, before any tokenizer.

    Attributes:
        prompt: plain text or messages; empty text for rows of the `text` format.
        completions: the row's own completions (none for prompt-only data, one for SFT, several for preferences).
        scores: how good each completion is, higher is better: 1 and 0 for chosen and rejected or for a good and a bad
            label, a rank or grade for ranked responses. Empty where the data does not say.
        sources: who wrote each completion (a model's name, "human"); empty where the data does not say.
        columns: every other column of the row after mapping (`answer`, …), handed to rewards.
        where: origin for error messages, as `file:line` (1-based) or `dataset[index]`.
    """

    prompt: Content
    completions: tuple[Content, ...] = ()
    columns: Mapping[str, Any] = field(default_factory=dict)
    where: str = ""
    scores: tuple[float, ...] = ()
    sources: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("scores", "sources"):
            values = getattr(self, name)
            if values and len(values) != len(self.completions):
                raise ValueError(f"{len(self.completions)} completions but {len(values)} {name}")


@dataclass(frozen=True, slots=True)
class Prompt:
    """A rendered and tokenised prompt. `ids` is never empty: something must predict the first token."""

    ids: tuple[int, ...]
    text: str
    content: Content = ""
    columns: Mapping[str, Any] = field(default_factory=dict)
    where: str = ""


@dataclass(frozen=True, slots=True)
class Distribution:
    """The distribution that sampler log-probs were taken under. The trainer scores at `temperature` alone;
    the other fields reshape it, so samples drawn with them are off-policy for the trainer."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    @property
    def is_plain(self) -> bool:
        """True when the trainer scores exactly this distribution (temperature only, and not greedy)."""
        reshaped = self.top_k or self.top_p < 1.0 or self.min_p > 0.0 or self.repetition_penalty != 1.0
        return self.temperature > 0.0 and not reshaped


Finish: TypeAlias = Literal["eos", "stop", "length", "data"]
"""Why a completion ended: the model's EOS, a stop string, the token limit, or it was read from data."""


@dataclass(frozen=True, slots=True)
class Completion:
    """One completion of a prompt.

    Attributes:
        ids: token ids, the EOS included when (and only when) the completion really ended in one.
        mask: same length as `ids`; True where the policy wrote the token. False spans (tool results, another
            agent's text, user turns) are context: no loss, no log-prob sums, no entropy, no length statistics.
        text: decoded text without special tokens; what rewards read.
        finish: why it ended.
        logprobs: the sampler's log-prob of each id (0.0 where mask is False), or None for data.
        distribution: what `logprobs` were taken under.
        policy_version: optimizer steps the policy had taken when it wrote this.
        source: "policy", "data", or the name of another model.
        score: the weighted sum of rewards, None before scoring; for data, what the row says (label, rank, preference).
        breakdown: each reward's own value (None where it did not apply).
        notes: what a scorer wrote about the completion, and how its signal came about, for people to read: a judge's
            or critic's explanation, baseline, weight. Plain JSON values; no formula reads them.
    """

    ids: tuple[int, ...]
    mask: tuple[bool, ...]
    text: str = ""
    finish: Finish = "data"
    logprobs: tuple[float, ...] | None = None
    distribution: Distribution | None = None
    policy_version: int = 0
    source: str = "data"
    score: float | None = None
    breakdown: Mapping[str, float | None] = field(default_factory=dict)
    notes: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.ids) != len(self.mask):
            raise ValueError(f"completion has {len(self.ids)} ids but a mask of length {len(self.mask)}")
        if self.logprobs is not None and len(self.logprobs) != len(self.ids):
            raise ValueError(f"completion has {len(self.ids)} ids but {len(self.logprobs)} log-probs")

    @property
    def length(self) -> int:
        """Tokens that the policy wrote (masked spans do not count)."""
        return sum(self.mask)


@dataclass(frozen=True, slots=True)
class Group:
    """One prompt and several completions of it: the unit of every method."""

    prompt: Prompt
    completions: tuple[Completion, ...]

    @property
    def scores(self) -> tuple[float, ...]:
        """Scores of all completions. Raises ValueError when one has none."""
        out: list[float] = []
        for completion in self.completions:
            if completion.score is None:
                raise ValueError(f"a completion of {self.prompt.where or 'a prompt'} has no score")
            out.append(completion.score)
        return tuple(out)


@dataclass(frozen=True, slots=True)
class TokenCounts:
    """What the token contract did to a data set. Printed and recorded by every run.

    Attributes:
        kept, dropped, truncated: rows.
        eos_invented: completions that got an EOS which the chat template did not write.
        special_text: kept rows whose text holds the text of a special token (see docs/data.md).
        unknown: kept rows with characters that the tokenizer's vocabulary lacks, so that the model can't see them.
        reasons: dropped rows by reason; sums to `dropped`.
    """

    kept: int = 0
    dropped: int = 0
    truncated: int = 0
    eos_invented: int = 0
    special_text: int = 0
    unknown: int = 0
    reasons: Mapping[str, int] = field(default_factory=dict)

    def __add__(self, other: TokenCounts) -> TokenCounts:
        reasons = dict(self.reasons)
        for reason, rows in other.reasons.items():
            reasons[reason] = reasons.get(reason, 0) + rows
        return TokenCounts(
            self.kept + other.kept,
            self.dropped + other.dropped,
            self.truncated + other.truncated,
            self.eos_invented + other.eos_invented,
            self.special_text + other.special_text,
            self.unknown + other.unknown,
            reasons,
        )

    def __str__(self) -> str:
        why = "; ".join(f"{rows}: {reason}" for reason, rows in self.reasons.items())
        text = f"{self.kept} kept, {self.dropped} dropped{f' ({why})' if why else ''}, {self.truncated} truncated, "
        text += f"{self.eos_invented} EOS invented"
        text += f", {self.special_text} with special-token text" if self.special_text else ""
        return text + (f", {self.unknown} with characters unknown to the tokenizer" if self.unknown else "")
