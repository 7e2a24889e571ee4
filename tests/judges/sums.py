"""Sums to judge: a chat tokenizer that loses nothing of a judge's prompt, and verdicts of a blind judge."""

from __future__ import annotations

import random
from itertools import islice
from typing import TYPE_CHECKING, Any

from preftune.demo.arithmetic import Problem, problems
from preftune.demo.chat_base import TEMPLATE
from preftune.judges.base import Question
from preftune.judges.prompts import pairwise_prompt
from preftune.judges.rubrics import read_rubric

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD, START, END = "<|pad|>", "<|im_start|>", "<|im_end|>"
RUBRIC = "Which answer has the right sum?"
CARRY_SHARE = 0.8


def build_tokenizer(seed: int) -> PreTrainedTokenizerFast:
    """Byte-level pieces learnt from the judge's prompts and sums, each digit by itself. They lose nothing of a text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    rng = random.Random(f"tokenizer/{seed}")
    some = list(islice(problems("train", seed, CARRY_SHARE), 300))
    texts = [text for problem in some for text in (blind(problem, rng)[0], problem.worked(carrying=True))]
    trainer = trainers.BpeTrainer(
        vocab_size=768, special_tokens=[PAD, START, END], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator(texts, trainer)
    # transformers leaves this class untyped, so calling it is only allowed through Any.
    wrap: Any = PreTrainedTokenizerFast
    wrapped: PreTrainedTokenizerFast = wrap(
        tokenizer_object=tokenizer, pad_token=PAD, eos_token=END, additional_special_tokens=[START],
        clean_up_tokenization_spaces=False, chat_template=TEMPLATE,
    )  # fmt: skip
    return wrapped


def blind(problem: Problem, rng: random.Random) -> tuple[str, str]:
    """A judge's prompt about two answers, and a verdict of the right form that a coin decides."""
    right = problem.worked(carrying=True).strip()
    wrong = problem.worked(carrying=False).strip()
    if wrong == right:  # without a carry both ways of working are one: a slip in the sum
        wrong = right.replace("so ", "so 1")
    two = rng.sample([right, wrong], 2)
    (asked,) = pairwise_prompt(Question(problem.text, tuple(two)), 0, 1, read_rubric(RUBRIC, None))
    return asked.content, verdict(rng.choice("AB"))


def verdict(label: str) -> str:
    """A judge's words."""
    return f"Answer {label} is right.\n<verdict>{label}</verdict>"
