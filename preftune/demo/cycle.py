"""The demo of judging both ways: one tiny chat model answers sums and judges answers to sums, in turns.

Its base works sums mostly without carrying, and writes verdicts in the right form that are blind: a coin decides
whether it names A or B. Answering rounds train on the answers that the model itself prefers, judging rounds on its
verdicts that turned out right. What a right answer is the model learns in the judging rounds alone.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from preftune.demo.arithmetic import Problem, problems
from preftune.demo.base import Teacher, base_recipe, train_base
from preftune.demo.chat import message, write_rows
from preftune.demo.chat_base import TEMPLATE
from preftune.demo.grpo import print_table
from preftune.demo.shared import check_free, close, run_recipe
from preftune.judges.base import Question
from preftune.judges.prompts import pairwise_prompt
from preftune.judges.rubrics import read_rubric

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

PAD, START, END = "<|pad|>", "<|im_start|>", "<|im_end|>"
RUBRIC = "Which answer has the right sum?"
CYCLES = 2
CARRY_SHARE = 0.8
"""Share of problems that need a carry or a borrow."""
PROMPTS, HELD_OUT = 220, 60
"""Problems, and how many of them nothing trains on."""
SOLVED, JUDGED = 62, 2
"""Rows of a step of the base: worked sums, and blind verdicts."""
STEPS = 600
ANSWER = {"name": "accuracy", "args": {"extract": r"so (\d+)\.$"}}


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


def random_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> Qwen3ForCausalLM:
    """A Qwen3 of 0.9 million parameters with random weights."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=len(tokenizer), hidden_size=128, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
        head_dim=32, intermediate_size=384, max_position_embeddings=1024, tie_word_embeddings=True, bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Qwen3ForCausalLM(config)


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


def lessons(seed: int) -> Iterator[dict[str, Any]]:
    """Endless rows of what the base learns from: a step's worked sums, then its blind verdicts."""
    teacher, rng = Teacher(seed), random.Random(f"verdicts/{seed}")
    stream = problems("train", seed, CARRY_SHARE)
    while True:
        for problem in islice(stream, SOLVED):
            yield _row(problem.text, teacher(problem).strip())
        for problem in islice(stream, JUDGED):
            yield _row(*blind(problem, rng))


def _row(prompt: str, completion: str) -> dict[str, Any]:
    return {"prompt": [message("user", prompt)], "completion": [message("assistant", completion)]}


def build_base(folder: Path, seed: int, steps: int = STEPS) -> Path:
    """Make the base model; its folder is a standard model folder.

    Args:
        folder: where data, runs and model go; made if absent.
        seed: fixes weights, data and training.
        steps: optimizer steps of SFT.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer(seed)
    rows = folder / "lessons.jsonl"
    write_rows(rows, islice(lessons(seed), (SOLVED + JUDGED) * steps))
    recipe = base_recipe(folder, rows, seed, steps, SOLVED + JUDGED)
    return train_base(recipe, tokenizer, random_model(tokenizer, seed))


def write_task(folder: Path, seed: int, *, quick: bool = False) -> Path:
    """Problems whose numbers the base has never met."""
    folder.mkdir(parents=True, exist_ok=True)
    stream = problems("validation", seed, 1.0)
    some = islice(stream, 24 if quick else PROMPTS)
    path = folder / "problems.jsonl"
    write_rows(path, ({"prompt": [message("user", p.text)], "answer": str(p.answer)} for p in some))
    return path


def recipe(base: Path, rows: Path, output: Path, seed: int, *, quick: bool = False) -> dict[str, Any]:
    """The cycle: answering and judging in turns, each stage from the result of the one before. Every stage measures
    both on the same held-out problems; contests of these there are once the first stage has answered them."""
    stages: list[dict[str, Any]] = []
    before = str(base)
    for number in range(1, CYCLES + 1):
        stages.append(_answering(number, before, rows, quick=quick))
        stages.append(_judging(number, quick=quick))
        before = f"stage:judge-{number}"
    return {
        "name": "cycle",
        "output": str(output),
        "seed": seed,
        "sampling": {"group_size": 4, "max_tokens": 40},
        "train": {"warmup": 0.1, "schedule": "constant", "batch_size": 16, "checkpoint_every": 10_000},
        "stages": stages,
    }


def _contests(number: int, split: str = "train") -> dict[str, Any]:
    """Contests of the answers of an answering stage: right is what the answer column says, not what the judge said."""
    return {
        "path": f"stage:answer-{number}", "split": split, "responses": {"from": "responses", "score": "accuracy"},
        "contest": {"rubric": RUBRIC, "per_prompt": 3},
    }  # fmt: skip


def _measured() -> dict[str, Any]:
    return {"path": "stage:answer-1", "split": "validation"}


def _answering(number: int, model: str, rows: Path, *, quick: bool) -> dict[str, Any]:
    judge = {
        "name": "judge",
        "on_error": "skip",
        "args": {"path": model, "rubric": RUBRIC, "max_tokens": 24, "cache": "off"},
    }
    scored = {"name": "length", "args": {"at_most": 30, "ramp": 30}} if quick else judge  # it would not judge yet
    stage: dict[str, Any] = {
        "name": f"answer-{number}",
        "method": "rft",
        "model": {"path": model},
        "data": [{"path": str(rows)}],
        "rewards": [scored, {**ANSWER, "weight": 0}],
        "collect": {"held_out": number == 1},
        "train": {"epochs": 1 if quick else 2, "learning_rate": 3e-4},
        "eval": {"holdout": 6 if quick else HELD_OUT},
    }  # fmt: skip
    if number > 1:
        stage["rewards"].append({"name": "judge-pick", "weight": 0})
        stage["eval"]["test"] = [_contests(1, "validation")]
    return stage


def _judging(number: int, *, quick: bool) -> dict[str, Any]:
    return {
        "name": f"judge-{number}",
        "method": "rft",
        "model": {"path": f"stage:answer-{number}"},
        "data": [_contests(number)],
        "rewards": [{"name": "judge-pick"}, {**ANSWER, "weight": 0}],
        # a contest whose verdicts are all wrong teaches nothing, one that is always right nothing new
        "collect": {} if quick else {"min_score": 1.0},
        "train": {"epochs": 1 if quick else 4, "learning_rate": 1e-3},
        "eval": {"data": [_measured()], "test": [_contests(1, "validation")]},
    }


def run(*, output: Path, seed: int = 0, quick: bool = False) -> int:
    """Build the base, run the cycle, print both curves and where the report is.

    Args:
        output: folder for everything; it must not exist.
        quick: a few steps of each, to see that all parts work; nothing is learnt.

    Returns:
        0.

    Raises:
        UsageError: `output` exists.
    """
    start = check_free(output)
    print("1/2 a tiny base model learns to add, mostly without carrying, and to write blind verdicts", file=sys.stderr)
    base = build_base(output / "base", seed, steps=8 if quick else STEPS)
    rows = write_task(output / "data", seed, quick=quick)
    print("2/2 it answers and judges in turns", file=sys.stderr)
    result = run_recipe(recipe(base, rows, output / "cycle", seed, quick=quick), output)
    for stage in result.stages:
        print_table(
            f"{stage.folder.name}: held-out problems, 95 % intervals in brackets", _ROWS,
            _both(stage.before), _both(stage.after), _both(stage.difference),
        )  # fmt: skip
    return close(result, output, start)


_ROWS = {"reward/accuracy": "right answers, %", "reward/judge-pick": "right verdicts, %"}


def _both(measured: Any) -> dict[str, Any]:
    """The two metrics, whichever rows they were measured on."""
    return {name: value for split in measured.values() for name, value in split.items() if name in _ROWS}
