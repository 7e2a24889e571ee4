"""The demo's base model: a tokenizer and a tiny Qwen3, trained on the spot to be truly bad at sums.

Its worked examples come from someone who mostly forgets to carry, so the wrong procedure is the model's most
likely one, while the right one stays within reach of sampling: what GRPO needs to find it.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from preftune.demo.arithmetic import Problem, problems, words, write_rows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

PAD, EOS, UNKNOWN = "<pad>", "<eos>", "<unk>"

CARRY_SHARE = 0.78
"""Share of problems that need a carry or a borrow."""
RIGHT_SHARE = 0.25
"""Of the worked examples that need a carry, those that are worked rightly."""
SLIP_SHARE = 0.03
"""Share of worked examples whose answer has one wrong digit."""
MALFORMED_SHARE = 0.03
"""Share of worked examples that do not end in an answer and a full stop."""
ROWS_PER_STEP = 64
STEPS = 600


def build_tokenizer(further: Sequence[str] = (), whole: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """A word-level tokenizer that loses nothing: each word once with and once without a space before it, each
    digit and sign a token of its own. Decoding joins the pieces as they are, so the ids of " so 85." read " so 85."
    again.

    Args:
        further: pieces that are put behind all others, so that no id changes.
        whole: pieces behind those that no other piece is ever cut from: tags.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    pieces = [PAD, EOS, UNKNOWN, " ", "\n", *"0123456789+-=.,?:"]
    pieces += [space + word for word in words() for space in (" ", "")]
    pieces += [piece for piece in dict.fromkeys([*further, *whole]) if piece not in frozenset(pieces)]
    tokenizer = Tokenizer(models.WordLevel({piece: i for i, piece in enumerate(pieces)}, unk_token=UNKNOWN))
    cut = "|".join([*map(re.escape, whole), r" ?\p{L}+|[^\p{L}]"])
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(cut), "isolated")
    tokenizer.decoder = decoders.Fuse()
    # transformers leaves this class untyped, so calling it is only allowed through Any.
    wrap: Any = PreTrainedTokenizerFast
    wrapped: PreTrainedTokenizerFast = wrap(
        tokenizer_object=tokenizer, pad_token=PAD, eos_token=EOS, unk_token=UNKNOWN, clean_up_tokenization_spaces=False
    )
    return wrapped


def random_model(
    tokenizer: PreTrainedTokenizerFast, seed: int, *, width: int = 128, layers: int = 4, positions: int = 256
) -> Qwen3ForCausalLM:
    """A Qwen3 with random weights, of 0.8 million parameters if nothing else is asked for."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=width // 4,
        intermediate_size=3 * width,
        max_position_embeddings=positions,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Qwen3ForCausalLM(config)


class Teacher:
    """Works problems as the base model is taught to: mostly without carrying, sometimes with a slip."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(f"teacher/{seed}")

    def __call__(self, problem: Problem) -> str:
        """The completion of one worked example."""
        text = problem.worked(carrying=self.rng.random() < RIGHT_SHARE)
        start, _, number = text.rstrip(".").rpartition(" ")
        if self.rng.random() < SLIP_SHARE:
            place = self.rng.randrange(len(number))
            number = number[:place] + str(self.rng.randint(0, 9)) + number[place + 1 :]
        if self.rng.random() < MALFORMED_SHARE:
            wrong = (f"{start}.", f"{start} {number}", f"{start} {number} {number}.", f"{start} {number}?")
            return self.rng.choice(wrong)
        return f"{start} {number}."


def base_recipe(folder: Path, rows: Path, seed: int, steps: int, rows_per_step: int = ROWS_PER_STEP) -> dict[str, Any]:
    """The recipe that trains a demo's base: plain SFT on `rows`, from the random model in `folder`."""
    return {
        "name": "base",
        "output": str(folder / "run"),
        "seed": seed,
        "method": "sft",
        "model": {"path": str(folder / "random")},
        "data": [{"path": str(rows)}],
        "train": {
            "steps": steps,
            "batch_size": rows_per_step,
            "learning_rate": 3e-3,
            "warmup": 0.06,
            "weight_decay": 0.01,
            "adam_beta2": 0.98,
            "checkpoint_every": 10_000,
        },
        "log": {"sinks": []},
    }


def train_base(recipe: dict[str, Any], tokenizer: Any, model: Any) -> Path:
    """Write the random model where the recipe expects it, and train it. Returns a standard model folder."""
    import transformers

    from preftune.pipeline import run_pipeline
    from preftune.recipes import resolve

    quiet: Any = transformers.utils.logging.disable_progress_bar
    quiet()  # a run has its own
    random = Path(recipe["model"]["path"])
    model.save_pretrained(random)
    tokenizer.save_pretrained(random)
    run_pipeline(resolve(recipe))
    return Path(recipe["output"]) / "final"


def build_base(folder: Path, seed: int, steps: int = STEPS) -> Path:
    """Make the base model.

    Args:
        folder: where data, runs and model go; made if absent.
        seed: fixes weights, data and training.
        steps: optimizer steps of SFT.

    Returns:
        A standard model folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer()
    examples = list(islice(problems("train", seed, CARRY_SHARE), ROWS_PER_STEP * steps))
    rows = write_rows(folder / "worked.jsonl", examples, Teacher(seed))
    return train_base(base_recipe(folder, rows, seed, steps), tokenizer, random_model(tokenizer, seed))
