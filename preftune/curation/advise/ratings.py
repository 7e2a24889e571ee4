"""Every method on the scales of the talk: quality, complexity, cost, applicability, and its usual cases.

Quality, complexity and cost run from 1 to 5 and are judgements, not measurements: quality is what the method reaches
when all that it needs is there, complexity what there is to set and to go wrong, cost the machine's and people's time
for the same number of prompts. Applicability (0 to 5) depends on the data and the means, see `preftune.curation.advise.
choose`.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Rating:
    """A method in general. `why` says where its numbers come from."""

    title: str
    quality: int
    complexity: int
    cost: int
    cases: str
    why: str


RATINGS: dict[str, Rating] = {
    "sft": Rating(
        "Supervised fine-tuning", 2, 1, 1,
        "a form, a tone, knowledge of a field; the stage before every other method",
        "it imitates all that it is shown, so it can't get better than its answers",
    ),
    "dpo": Rating(
        "Direct preference optimisation", 3, 2, 2,
        "open models of small and middle size on one's own machine: Llama, Mistral, Zephyr, OpenChat",
        "one loss on fixed pairs; it never sees what the policy writes as it changes",
    ),
    "kto": Rating(
        "Kahneman–Tversky optimisation", 3, 2, 2,
        "safety: no toxic answers, no disinformation, no dangerous advice; thumbs up and down from users",
        "as DPO with half the information: a mark says less than a comparison",
    ),
    "iterative-dpo": Rating(
        "Iterative DPO", 4, 3, 4,
        "a good reward model or judge is there, as in a bank's assistant on Qwen2.5-7B",
        "pairs are made anew from the policy's own answers, round by round; DPO's few settings stay",
    ),
    "ppo": Rating(
        "Proximal policy optimisation", 4, 5, 5,
        "summaries, question answering, translation; GPT-3.5 and its like, on a cluster",
        "the policy, a value model, a reference and a reward model at once, and the most numbers to set",
    ),
    "grpo": Rating(
        "Group-relative policy optimisation", 4, 3, 4,
        "logic, reasoning, code, mathematics; DeepSeek-R1",
        "no value model, but a group of answers to every prompt at every step",
    ),
    "rft": Rating(
        "Rejection fine-tuning", 3, 1, 3,
        "a check or a judge is there and little time to tune; the stage before GRPO",
        "SFT on the best of the policy's own answers: nothing is pushed down, so it gains less and breaks less",
    ),
    "human": Rating(
        "Direct reinforcement learning from human feedback", 5, 3, 5,
        "small or scientific tasks that want the best quality",
        "people score the policy's own answers, so nothing stands between their judgement and the model; their time is "
        "the cost",
    ),
    "gmpo": Rating(
        "GMPO with a generative critic", 4, 4, 5,
        "answers that need an explanation of what is wrong with them; a critic that is wanted for itself",
        "policy and critic learn side by side; the critic writes about every answer",
    ),
}  # fmt: skip
"""Method → its rating. Quality etc. follow the talk's order of the methods (seed 003) where it has them."""
