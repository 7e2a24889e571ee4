"""From facts and answers to a method: the two charts of the talk (seed 003) and of the notes on reasoning (seed 001).

labels?   none, can't be verified → people or a reward model;  none, can be verified → GRPO
          many good answers → SFT;  few: thinking helps → GRPO, it does not → SFT
shape     prompts → GRPO, iterative DPO;  marks → KTO;  pairs → DPO;  ranked → a reward model, then PPO or iterative DPO
means     a cluster and many annotators, or a small task that wants the best quality → direct RLHF
"""

from __future__ import annotations

from dataclasses import dataclass

from preftune.curation.advise.config import AdviseConfig
from preftune.curation.advise.facts import REWARD, Facts


@dataclass(frozen=True, slots=True)
class Choice:
    """A method with what speaks for it on this data. `stages`: what has to come before it, `reward` mostly."""

    method: str
    reasons: tuple[str, ...]
    stages: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Applicability:
    """0 (can't run) to 5 (everything it needs is there), and why."""

    score: int
    why: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """The recommendation.

    Attributes:
        best, second: the method to take and the one to consider instead.
        applicability: of every rated method.
        path: the questions of the charts with the answers that led to `best`.
        warnings: what to see to whatever the method.
    """

    best: Choice
    second: Choice
    applicability: dict[str, Applicability]
    path: tuple[tuple[str, str], ...]
    warnings: tuple[str, ...]


def choose(facts: Facts, config: AdviseConfig) -> Verdict:
    """Follow the charts. `facts` without rows: there is no data, so prompts are to be collected first."""
    means = Means(facts, config)
    ranked = list(_candidates(means))
    best = ranked[0]
    second = next(choice for choice in ranked[1:] if choice.method != best.method)
    return Verdict(best, second, {name: test(means) for name, test in _TESTS.items()}, means.path(), means.warnings())


class Means:
    """Facts and answers, read as the charts ask."""

    def __init__(self, facts: Facts, config: AdviseConfig) -> None:
        self.facts, self.config = facts, config
        self.shape = facts.shape or "prompts"
        self.count = facts.shapes.get(self.shape, 0)
        self.verifiable = config.verifiable == "yes" or (config.verifiable == "auto" and facts.check is not None)
        self.judged = config.judge is not None or config.reward_model is not None
        self.thinking = config.chain_of_thought == "yes"
        self.good_answers = self._good_answers()
        self.many = self.good_answers >= config.few
        self.small = config.task == "small"
        self.people = config.annotators in ("few", "many")
        self.cluster = config.gpus == "cluster"
        self.sampling = config.gpus in ("one", "cluster")
        self.compares = self.shape in ("pairs", "ranked")

    def _good_answers(self) -> int:
        facts = self.facts
        if self.shape in ("answers", "pairs", "ranked", "text"):
            return self.count
        return round(self.count * (facts.good or 0.0)) if self.shape == "marks" else 0

    def path(self) -> tuple[tuple[str, str], ...]:
        """The charts' questions and the answers."""
        facts, config = self.facts, self.config
        shapes = {
            "prompts": "prompts alone", "answers": "prompts with answers", "text": "plain text",
            "marks": "answers marked good or bad", "pairs": "pairs of a better and a worse answer",
            "ranked": "several ranked or graded answers to a prompt",
        }  # fmt: skip
        check = (
            f"yes: column `{facts.answers}` ({facts.check}), by the built-in reward `{REWARD[facts.check]}`"
            if facts.check and config.verifiable == "auto"
            else None
        )
        labels = f"{self.good_answers:,} good ones, {'many' if self.many else f'few (under {config.few})'}"
        return (
            ("What do the rows hold?", shapes[self.shape] if facts.rows else "there are none yet"),
            ("Are there answers to learn from?", labels if self.good_answers else "no"),
            ("Can a program check an answer?", check or ("yes" if self.verifiable else "no")),
            ("Does thinking before answering help?", config.chain_of_thought),
            ("Can a model judge answers?", config.reward_model or config.judge or "no"),
            ("What is there to train on?", config.gpus),
            ("Who can judge answers?", config.annotators),
            ("What is the task?", config.task),
        )

    def warnings(self) -> tuple[str, ...]:
        """What to see to whatever the method."""
        facts, out = self.facts, list[str]()
        if facts.rows and facts.mixed:
            parts = ", ".join(f"{count:,} {shape}" for shape, count in facts.shapes.most_common())
            out.append(
                f"the rows are of several shapes ({parts}); the advice follows the most frequent one: "
                "give the recipe those alone"
            )
        if facts.rows and facts.prompts < 0.9 * facts.rows and self.shape in ("prompts", "answers", "pairs", "ranked"):
            out.append(
                f"{facts.rows:,} rows have {facts.prompts:,} different prompts; `preftune data audit` shows them"
            )
        if self.shape == "marks" and facts.good is not None and not 0.2 <= facts.good <= 0.8:
            out.append(f"{100 * facts.good:.0f} % of the answers are marked good; set `loss.desirable_weight: auto`")
        if self.compares and self.count < 500:
            out.append(f"{self.count:,} comparisons are few: expect wide intervals, and hold out a fifth of them")
        if self.shape == "prompts" and not self.verifiable and not self.judged:
            out.append(
                "models of different strength can stand in for people: `preftune data generate` has them answer, "
                "`preftune data pairs` makes comparisons of the answers, and those train a reward model"
            )
        if self.shape == "text":
            out.append("plain text has no prompts: it can only be imitated (SFT)")
        return tuple(out)


def _candidates(means: Means) -> list[Choice]:
    """Methods in the order in which the charts arrive at them; at least two."""
    out: list[Choice] = []
    config = means.config
    if means.people and (means.small or (means.cluster and config.annotators == "many")):
        why = "the task is small and quality is all" if means.small else "there are a cluster and many annotators"
        out.append(Choice("human", (f"{why}, and people can score what the policy writes",)))
    if means.shape == "pairs":
        out.append(
            Choice("dpo", (f"{means.count:,} pairs say which answer is better; DPO learns from them as they are",))
        )
    if means.compares:
        out += _from_comparisons(means)
    if means.shape == "marks":
        out.append(Choice("kto", ("answers are marked one by one, without a better one beside them",)))
    if means.shape in ("answers", "text"):
        out += _from_answers(means)
    if means.verifiable:
        out.append(Choice("grpo", (_checked(means), "the policy may find better ways than the rows show")))
        out.append(Choice("rft", (_checked(means), "the simplest method that learns from a check")))
    if means.judged:
        who = config.reward_model or config.judge
        if means.cluster and config.reward_model:
            out.append(Choice("ppo", (f"{who} scores answers, and a cluster holds four models at once",)))
        out.append(Choice("iterative-dpo", (f"{who} can rank what the policy writes",)))
        out.append(Choice("rft", (f"{who} can pick the best of the policy's answers",)))
    if means.people:
        out.append(Choice("human", ("people can score what the policy writes",)))
    out += _fallbacks(means)
    return out


def _from_comparisons(means: Means) -> list[Choice]:
    made = ("the comparisons train a reward model that ranks whatever the policy writes",)
    ppo = Choice("ppo", (*made, "a cluster holds policy, value, reference and reward model"), ("reward",))
    rounds = Choice("iterative-dpo", (*made, "each round makes fresh pairs from the policy's own answers"), ("reward",))
    dpo = Choice("dpo", ("a ranking of several answers is many pairs; no sampling is needed",))
    if means.shape == "ranked":
        if not means.sampling:
            return [dpo, rounds]
        return [ppo, rounds, dpo] if means.cluster else [rounds, dpo, ppo]
    return [rounds, ppo] if not means.cluster else [ppo, rounds]


def _from_answers(means: Means) -> list[Choice]:
    count = f"{means.good_answers:,} good answers"
    sft = Choice("sft", (f"{count} can be imitated",))
    if means.shape == "text":
        return [sft]
    if means.many:
        return [Choice("sft", (f"{count} are many: imitating them is the cheapest way",))]
    if means.thinking and means.verifiable:
        why = f"{count} are few, thinking helps, and {_checked(means)}"
        return [Choice("grpo", (why, "it needs the answers' results, not their words")), sft]
    return [Choice("sft", (f"{count} are few, but nothing suggests that the policy could find better ones by itself",))]


def _fallbacks(means: Means) -> list[Choice]:
    """What is left where the charts end: something to begin with."""
    if means.shape == "pairs":
        return [Choice("kto", ("each pair is a good and a bad answer, too; take it where pairs are noisy",))]
    if means.shape == "marks":
        return [Choice("sft", ("the answers marked good can be imitated",))]
    if means.shape in ("answers", "text"):
        return [
            Choice("sft", ("answers to imitate are there",)),
            Choice("rft", ("with a check or a judge, the best of the policy's own answers can be imitated as well",)),
        ]
    return [
        Choice("human", ("nothing but people can say what a good answer is: no check, no judge, no comparisons",)),
        Choice("iterative-dpo", ("a language model as a judge (--judge) could stand in for people",)),
    ]


def _checked(means: Means) -> str:
    facts = means.facts
    if facts.check is None:
        return "a program can check"
    return f"a program can check answers (column `{facts.answers}`, reward `{REWARD[facts.check]}`)"


# ------------------------------------------------------------------------------------------------- applicability


def _sft(means: Means) -> Applicability:
    if not means.good_answers:
        return Applicability(0, "there is no answer to imitate")
    return Applicability(5, "answers are there") if means.many else Applicability(3, "few answers are there")


def _dpo(means: Means) -> Applicability:
    if means.compares:
        return Applicability(5, "comparisons are there")
    return Applicability(1, "it needs pairs: `preftune data pairs` makes them from answers of known rank")


def _kto(means: Means) -> Applicability:
    if means.shape == "marks":
        both = means.facts.good is not None and 0.0 < means.facts.good < 1.0
        return Applicability(5, "marks are there") if both else Applicability(1, "all marks are the same")
    return Applicability(3, "pairs can be read as marks") if means.compares else Applicability(1, "it needs marks")


def _scored(means: Means, extra: str = "") -> Applicability:
    score = 5 if means.sampling else 3
    slow = "" if means.sampling else "; without a GPU drawing answers takes long"
    if means.verifiable:
        return Applicability(score, f"{_checked(means)}{slow}")
    if means.judged:
        return Applicability(score - 1, f"a model can judge{slow}")
    if means.compares:
        return Applicability(score - 1, f"a reward model can be trained on the comparisons first{slow}")
    return Applicability(0, f"nothing can score an answer{extra}")


def _grpo(means: Means) -> Applicability:
    return _scored(means, ": give a check, --judge or --reward_model")


def _ppo(means: Means) -> Applicability:
    if means.config.reward_model or means.compares:
        score = 5 if means.cluster else 3 if means.sampling else 1
        return Applicability(score, "a reward model is there or can be trained; it wants a large machine")
    return Applicability(1 if means.verifiable else 0, "it is meant for a reward model")


def _human(means: Means) -> Applicability:
    if not means.people:
        known = means.config.annotators == "none"
        return Applicability(0, "nobody is there to judge" if known else "say with --annotators who can judge")
    return Applicability(5 if means.small or means.config.annotators == "many" else 3, "people can judge")


def _gmpo(means: Means) -> Applicability:
    if means.verifiable:
        return Applicability(4 if means.sampling else 2, "a check can teach the critic")
    return Applicability(2, "without a check the critic can't learn")


_TESTS = {
    "sft": _sft, "dpo": _dpo, "kto": _kto, "iterative-dpo": _scored, "ppo": _ppo, "grpo": _grpo, "rft": _scored,
    "human": _human, "gmpo": _gmpo,
}  # fmt: skip
