"""GMPO's generative critic: an adapter on the policy's base that explains an answer and scores it.

For each answer the critic samples an explanation up to `<score>`. The score is then not sampled but expected:

    L_k = log π_critic("k</score>" | prompt, explanation, "<score>")        k = 0 … 10, each as a whole string
    p   = softmax(L_0 … L_10)            E = Σ k p_k            r = E / 10

The eleven strings are eleven completions of one shared prompt, so a prompt and its explanation are computed once, and
"10", which is often two tokens and shares "1" with "1</score>", counts as what it is. r is detached for the policy;
`critic_learning` differentiates the same eleven branches for the critic.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from preftune.config import CriticConfig, SamplingConfig
from preftune.engine.forward import Engine
from preftune.engine.pack import input_length
from preftune.errors import PreftuneError, RewardError
from preftune.models.roles import Role
from preftune.records import Completion, Content, Example, Group, Message, Prompt
from preftune.rewards import critic_text
from preftune.rewards.base import RewardSet
from preftune.rewards.critic_text import ENDINGS, SCORE, TOP, JointCritique
from preftune.sampling.base import Sampler
from preftune.tokens import TokenContract

_STREAM = 2_654_435_761
"""Parts the critic's draws from the policy's, which are seeded from the same (seed, step)."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """What the critic said about one answer.

    Attributes:
        prompt: what the critic read.
        ids: what it wrote, up to and with `<score>`.
        probabilities: of the eleven scores 0 … 10.
        truth: how right the answer is, 0 to 1; None where nobody knows.
    """

    prompt: Prompt
    ids: tuple[int, ...]
    explanation: str
    probabilities: tuple[float, ...]
    truth: float | None

    @property
    def expected(self) -> float:
        """E[score], 0 to 10."""
        return math.fsum(k * p for k, p in enumerate(self.probabilities))

    @property
    def agreed(self) -> bool:
        """Whether the score is on the truth's side: E ≥ 5 for a right answer, below for a wrong one."""
        return self.truth is not None and (self.expected >= TOP / 2) == (self.truth >= 0.5)


@dataclass(frozen=True, slots=True)
class JointJudgement:
    """What the critic wrote about all answers to one prompt, for `gmpo.critic.joint`."""

    prompt: Prompt
    ids: tuple[int, ...]
    critique: JointCritique
    truths: tuple[float | None, ...]

    @property
    def agreed(self) -> bool:
        """Whether every written score is on the truth's side."""
        return all(
            truth is not None and (score >= 0.5) == (truth >= 0.5)
            for score, truth in zip(self.critique.scores, self.truths, strict=True)
        )


@dataclass(frozen=True, slots=True)
class Judged:
    """Scored groups and how their scores came about.

    Attributes:
        groups: without answers that got no readable critique, and without prompts that have no other.
        judgements: one for each of their completions, in order.
        metrics: `critic/…`, defined in docs/methods/gmpo.md.
        unread: what was written where the second try could not be read either.
    """

    groups: tuple[Group, ...]
    judgements: tuple[Judgement, ...]
    joint: tuple[JointJudgement, ...]
    metrics: dict[str, float]
    unread: tuple[Completion, ...]


@dataclass(frozen=True, slots=True)
class _Written:
    ids: tuple[int, ...]
    explanation: str


class Critic:
    """Judges answers. Within its methods the policy's model acts as the critic; afterwards as the policy again.

    Args:
        role: the critic's adapter on the policy's base.
        engine, contract, sampler: the policy's own; they run whatever role acts.
        truth: one reward with weight 0 that says how right an answer is, 0 to 1, or None.
        instruction: text of `gmpo.critic.prompt`.
        seed: the recipe's.
        budget: tokens of one packed forward pass.
        rows: answers decoded at once.
    """

    def __init__(
        self, role: Role, *, engine: Engine, contract: TokenContract, sampler: Sampler, config: CriticConfig,
        truth: RewardSet | None, instruction: str | None, seed: int, budget: int, rows: int = 256,
    ) -> None:  # fmt: skip
        self.role, self.engine, self.contract, self.sampler = role, engine, contract, sampler
        self.config, self.truth, self.instruction = config, truth, instruction
        self.seed, self.budget = seed, budget
        self._settings = SamplingConfig(
            group_size=1, max_tokens=config.max_tokens, temperature=config.temperature, stop=[SCORE], rows=rows
        )
        ids = [contract.encode(ending) for ending in ENDINGS]
        self.endings = tuple(
            Completion(part, (True,) * len(part), text=text) for part, text in zip(ids, ENDINGS, strict=True)
        )

    def parameters(self) -> list[tuple[str, nn.Parameter]]:
        """The critic's weights, in a fixed order."""
        return self.role.parameters()

    # --- judging ------------------------------------------------------------------------------------------------

    def score(self, groups: Sequence[Group], *, step: int) -> Judged:
        """Explain and score every answer. Depends on weights, groups and (seed, step) alone.

        Args:
            step: optimizer steps taken so far.

        Raises:
            PreftuneError: less than `gmpo.critic.min_parsed` of the critiques can be read, or less than that of the
                answers have one (some may be too long to be read whole).
            RewardError: the truth reward failed, or gave a value outside 0 … 1.
        """
        judged = self.judge(groups, step=step)
        share = min(judged.metrics["critic/parsed"], 1.0 - judged.metrics["critic/left_out"])
        if share < self.config.min_parsed or not judged.groups:
            raise PreftuneError(self._complaint(groups, judged, step))
        return judged

    def judge(self, groups: Sequence[Group], *, step: int) -> Judged:
        """As `score`, however few critiques can be read."""
        truths = self.truths(groups, step)
        prompts = [self.prompt(group.prompt, c.text) for group in groups for c in group.completions]
        fits = [n for n, prompt in enumerate(prompts) if self.fits(prompt, self._settings.max_tokens)]
        with self.role.acting():
            written, unread, retried = self._explain(prompts, fits, step)
            found = sorted(written)
            rows = self.distributions([_behind(prompts[n], written[n].ids) for n in found])
            joint = self._joint(groups, truths, step) if self.config.joint else {}
        known = [truth for row in truths for truth in row]
        judgements = {
            n: Judgement(prompts[n], written[n].ids, written[n].explanation, tuple(row), known[n])
            for n, row in zip(found, rows.tolist(), strict=True)
        }
        kept: list[Group] = []
        place = 0
        for g, group in enumerate(groups):
            some = [
                _judged(completion, judgements[place + c], joint.get(g), c)
                for c, completion in enumerate(group.completions)
                if place + c in judgements
            ]
            place += len(group.completions)
            if some:
                kept.append(replace(group, completions=tuple(some)))
        total = max(len(prompts), 1)
        metrics = {
            "critic/parsed": len(found) / max(len(fits) + retried, 1),
            "critic/retried": retried / total,
            "critic/left_out": 1.0 - len(found) / total,
            "critic/too_long": 1.0 - len(fits) / total,
        }
        if found:
            metrics["critic/reward"] = math.fsum(j.expected for j in judgements.values()) / TOP / len(found)
            metrics["critic/length"] = sum(len(w.ids) for w in written.values()) / len(found)
        if self.config.joint:
            metrics["critic/joint_parsed"] = len(joint) / max(len(groups), 1)
        pairs = [(j.expected, j.truth) for j in judgements.values() if j.truth is not None]
        if (agreement := concordance(pairs)) is not None:
            metrics["critic/agreement"] = agreement
        return Judged(tuple(kept), tuple(judgements[n] for n in found), tuple(joint.values()), metrics, unread)

    def truths(self, groups: Sequence[Group], step: int) -> list[list[float | None]]:
        """How right each answer is, 0 to 1; None without a truth reward, or where it does not apply.

        Raises:
            RewardError: it failed, or gave a value outside 0 … 1.
        """
        if self.truth is None:
            return [[None] * len(group.completions) for group in groups]
        (name,) = self.truth.names
        scored = self.truth.score(groups, step, step + 1)
        out = [[completion.breakdown[name] for completion in group.completions] for group in scored.groups]
        for group, row in zip(groups, out, strict=True):
            for value in row:
                if value is not None and not 0.0 <= value <= 1.0:
                    raise RewardError(
                        f"gmpo.critic.truth {name!r} gave {value:g} for an answer to "
                        f"{group.prompt.where or 'a prompt'}; it must be 0 (wrong) to 1 (right), or None where it does "
                        "not apply"
                    )
        return out

    def prompt(self, question: Prompt, answer: str) -> Prompt:
        """What the critic reads of one answer, in the form (text or conversation) of the policy's own prompts."""
        plain = isinstance(question.content, str)
        asked = critic_text.question_text(question.content or question.text)
        reference = critic_text.as_reference(question.columns, self.config.reference)
        if plain:
            answer = self._bare(answer)
        text = critic_text.critic_prompt(asked, answer, reference, self.instruction)
        return self._render(text, question, plain)

    def joint_prompt(self, group: Group) -> Prompt:
        """What the critic reads of all answers to one prompt."""
        plain = isinstance(group.prompt.content, str)
        asked = critic_text.question_text(group.prompt.content or group.prompt.text)
        answers = [c.text for c in group.completions]
        reference = critic_text.as_reference(group.prompt.columns, self.config.reference)
        if plain:
            answers = [self._bare(text) for text in answers]
        return self._render(critic_text.joint_prompt(asked, answers, reference), group.prompt, plain)

    def distributions(self, prefixes: Sequence[Prompt]) -> Tensor:
        """The probabilities of the eleven scores behind each prefix, (A, 11), fp64, without gradient. The role must be
        acting."""
        groups = self.branches(prefixes)
        scored = self.engine.score(groups, self.whole_budget(groups))
        sums = [[float(tokens.double().sum()) for tokens in row] for row in scored]
        return torch.tensor(sums, dtype=torch.float64).reshape(-1, TOP + 1).softmax(-1)

    def branches(self, prefixes: Sequence[Prompt]) -> list[Group]:
        """Each prefix with the eleven strings that may follow it."""
        return [Group(prefix, self.endings) for prefix in prefixes]

    def whole_budget(self, groups: Sequence[Group]) -> int:
        """Tokens of a pack in which none of these groups is split: a softmax over branches needs all of them."""
        sizes = (len(g.prompt.ids) + sum(input_length(c) for c in g.completions) for g in groups)
        return max(self.budget, *sizes, 0)

    # --- parts --------------------------------------------------------------------------------------------------

    def _render(self, text: str, question: Prompt, plain: bool) -> Prompt:
        # One user message: some templates refuse a system role.
        content: Content = text if plain else (Message("user", text),)
        return self.contract.prompt(Example(content, columns=question.columns, where=question.where))

    def _bare(self, text: str) -> str:
        """Text without that of special tokens, which a plain prompt would otherwise read as the tokens themselves: an
        answer must not end the critic's prompt. (In conversations the token contract sees to it.)"""
        while True:
            ids = self.contract.encode(text)
            shown, bare = self.contract.text_with_specials(ids), self.contract.decode(ids)
            if shown == bare or len(bare) >= len(text):  # the latter: only unknown characters differ
                return text
            text = bare  # taking one out may have made another

    def fits(self, prompt: Prompt, tokens: int) -> bool:
        limit = self.engine.policy.context_length
        longest = max(len(ending.ids) for ending in self.endings)
        return limit is None or len(prompt.ids) + tokens + longest <= limit

    def _draw(self, prompts: Sequence[Prompt], settings: SamplingConfig, step: int, stream: int) -> list[Completion]:
        seed = (self.seed * 1_000_003 + step) * 8 + stream + _STREAM
        groups = self.sampler.sample(prompts, 1, settings, seed=seed, policy_version=step)
        return [group.completions[0] for group in groups]

    def _explain(
        self, prompts: Sequence[Prompt], fits: list[int], step: int
    ) -> tuple[dict[int, _Written], tuple[Completion, ...], int]:
        """Place → what was written there, where it can be read; what can't be; how many had to be asked twice."""
        written: dict[int, _Written] = {}
        waiting, retried = fits, 0
        unread: list[Completion] = []
        for stream in (0, 1):
            drawn = self._draw([prompts[n] for n in waiting], self._settings, step, stream) if waiting else []
            found = {n: self._read(completion) for n, completion in zip(waiting, drawn, strict=True)}
            written |= {n: one for n, one in found.items() if one is not None}
            unread = [completion for n, completion in zip(waiting, drawn, strict=True) if found[n] is None]
            waiting = [n for n in waiting if found[n] is None]
            retried = len(waiting) if stream == 0 else retried
        return written, tuple(unread), retried

    def _read(self, completion: Completion) -> _Written | None:
        head, tag, tail = completion.text.partition(SCORE)
        explanation = critic_text.parse_opening(head + tag)
        if explanation is None:
            return None
        # A last token may reach over the tag. What the branches follow must end in it, so such a text is encoded anew.
        return _Written(self.contract.encode(head + tag) if tail.strip() else completion.ids, explanation)

    def _joint(
        self, groups: Sequence[Group], truths: Sequence[Sequence[float | None]], step: int
    ) -> dict[int, JointJudgement]:
        """Group → what the critic wrote about all its answers, where it can be read."""
        settings = self._settings.model_copy(update={"stop": [critic_text.JOINT_END]})
        prompts = [self.joint_prompt(group) for group in groups]
        fits = [g for g, prompt in enumerate(prompts) if self.fits(prompt, settings.max_tokens)]
        drawn = self._draw([prompts[g] for g in fits], settings, step, 2) if fits else []
        out = {}
        for g, completion in zip(fits, drawn, strict=True):
            text = "".join(completion.text.partition(critic_text.JOINT_END)[:2])
            critique = critic_text.parse_joint(text, len(groups[g].completions))
            if critique is not None:
                out[g] = JointJudgement(prompts[g], completion.ids, critique, tuple(truths[g]))
        return out

    def _complaint(self, groups: Sequence[Group], judged: Judged, step: int) -> str:
        asked = sum(len(group.completions) for group in groups)
        read, long = len(judged.judgements), round(judged.metrics["critic/too_long"] * asked)
        cut = sum(completion.finish == "length" for completion in judged.unread)
        said = f"step {step + 1}: {read} of {asked} answers got a critique that can be read, and "
        said += f"{judged.metrics['critic/parsed']:.0%} of the critiques can be (gmpo.critic.min_parsed: "
        said += f"{self.config.min_parsed:.0%})"
        if judged.unread:
            said += f". The critic wrote, for example, {judged.unread[0].text[:200]!r} ({judged.unread[0].finish})"
        said += f"; the form is {critic_text.opening('…')}k{critic_text.END}. "
        todo = []
        if long:
            todo.append(
                f"{long} answers are too long for the critic to read whole: lower sampling.max_tokens or "
                "gmpo.critic.max_tokens"
            )
        if cut:
            todo.append(f"{cut} critiques were cut: raise gmpo.critic.max_tokens")
        if self.truth is None:
            todo.append("name a gmpo.critic.truth, so that a cold start can teach the form")
        else:
            todo.append("raise gmpo.critic.cold_start or gmpo.critic.learning_rate, so that it learns the form")
        return said + "; ".join(todo) + "; or begin with a model that follows instructions"


def _behind(prompt: Prompt, ids: tuple[int, ...]) -> Prompt:
    return replace(prompt, ids=prompt.ids + ids)


def _judged(completion: Completion, judgement: Judgement, joint: JointJudgement | None, place: int) -> Completion:
    """The completion with its score, and what there is to read about it."""
    reward = judgement.expected / TOP
    notes: dict[str, Any] = {
        "explanation": judgement.explanation, "reward": reward, "truth": judgement.truth,
    }  # fmt: skip
    if joint is not None:
        notes["joint"] = {
            "explanation": joint.critique.explanation, "reward": joint.critique.scores[place],
            "baseline": joint.critique.baseline, "temperature": joint.critique.temperature,
        }  # fmt: skip
    breakdown = {**completion.breakdown, "critic": reward, "truth": judgement.truth}
    return replace(completion, score=reward, breakdown=breakdown, notes={**completion.notes, **notes})


def prefixes_of(judgements: Sequence[Judgement]) -> Iterator[Prompt]:
    """What the eleven branches of each judgement stand behind."""
    for judgement in judgements:
        yield _behind(judgement.prompt, judgement.ids)


def concordance(pairs: Sequence[tuple[float, float]]) -> float | None:
    """Of all pairs of answers whose truths differ, the share that the scores put in the same order, ties a half: the
    area under the ROC curve where truth is right or wrong. None where no truths differ.

    >>> concordance([(0.9, 1.0), (0.2, 0.0), (0.9, 0.0)])
    0.75
    """
    total = right = 0.0
    for n, (score, truth) in enumerate(pairs):
        for other_score, other_truth in pairs[:n]:
            if truth != other_truth:
                total += 1.0
                step = (score - other_score) * (truth - other_truth)
                right += 0.5 if step == 0.0 else float(step > 0.0)
    return right / total if total else None
