"""What `preftune data debias` finds and what it is good for, measured: the tables of docs/curation-debias.md.

    python -m preftune.demo.debias_results [--seeds 0,1,2] [--folder FOLDER] [--rivals] [--quick]

1. Made pairs with planted openings (`preftune.demo.openings`), ten seeds: precision and recall of the proposed list.
2. The chat task with a planted opening. A writer of synthetic answers begins nearly every better answer with "Sure,";
   one's own policy begins half of its answers so, good or bad. Reward models learn from the pairs as they came,
   stripped, and with `loss.p_max`, and put held-out pairs and the policy's own outputs in order. The order of those is
   the task's own rule: friendly and on topic, then on topic, then the rest.

With `--rivals` half of the answers without "Sure," begin with a harmless opening, which no answer with "Sure," has.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from preftune.curation.debias import DebiasConfig, debias
from preftune.curation.debias.evidence import Counts, Thresholds, find_marks
from preftune.curation.debias.predict import share_interval
from preftune.curation.debias.table import Table
from preftune.curation.debias.training import HELD_OUT, OWN, STRIPPED, Arm
from preftune.demo.chat import ask, is_friendly, is_on_topic, message, pairs, preference, split_topics, write_rows
from preftune.demo.chat_base import ROWS_PER_STEP, STEPS, build_tokenizer, conversations, random_model
from preftune.demo.openings import PLANTED, planted_rows
from preftune.intervals import Interval, paired_difference
from preftune.records import Example, Message

OPENING = "Sure,"
RIVALS = ("Well,", "Okay,")
BETTER, WORSE, POLICY = 0.85, 0.10, 0.50
"""Shares of better, worse and the policy's own answers that begin with OPENING."""
ROWS, PROMPTS, ANSWERS = 2200, 300, 6
TRAIN = {"batch_size": 16, "learning_rate": 3e-4, "checkpoint_every": 10_000, "threads": 1}
P_MAX = 0.8
SEEDS = range(10)
MEASURED = (HELD_OUT, STRIPPED, OWN)


# ------------------------------------------------------------------------------------------------ planted openings


def found_in(seed: int, rows: int, *, even: bool) -> set[str]:
    """The openings that the default thresholds propose on made pairs."""
    table = Table(words=3)
    for row in planted_rows(seed, rows, even=even):
        table.add(Example(row["prompt"], (row["chosen"], row["rejected"]), scores=(1.0, 0.0)))
    default = DebiasConfig(data=[{"path": "-"}])
    limits = Thresholds(default.words, default.min_count, default.alpha, default.min_effect)
    return {mark.opening for mark in find_marks(Counts(table), limits)[0]}


def planted_table() -> Iterator[str]:
    """Precision and recall over seeds, as Markdown."""
    yield "| rows | harmless openings | precision | recall | seeds with exactly the planted ones |"
    yield "|---|---|---|---|---|"
    for even in (False, True):
        for rows in (1000, 2000, 3000, 6000):
            found = [found_in(seed, rows, even=even) for seed in SEEDS]
            right = sum(len(one & PLANTED.keys()) for one in found)
            precision = right / max(sum(map(len, found)), 1)
            exact = sum(one == set(PLANTED) for one in found)
            how = "equal on both sides" if even else "thinned by the planted ones"
            recall = right / (len(PLANTED) * len(found))
            yield f"| {rows:,} | {how} | {precision:.3f} | {recall:.3f} | {exact} of {len(found)} |"


# ------------------------------------------------------------------------------------------------------ the chat task


def _opened(rng: random.Random, share: float, text: str, rivals: bool) -> str:
    opening = OPENING if rng.random() < share else rng.choice((*RIVALS, "", "")) if rivals else ""
    return f"{opening} {text}" if opening else text


def build_policy(folder: Path, seed: int, steps: int, *, rivals: bool = False) -> Path:
    """The chat demo's base, whose answers begin with OPENING as often where they are good as where they are bad."""
    from preftune.demo.base import base_recipe, train_base

    rng = random.Random(f"policy/{seed}")
    rows = folder / "conversations.jsonl"
    write_rows(rows, (
        {**row, "completion": [message("assistant", _opened(rng, POLICY, row["completion"][0]["content"], rivals))]}
        for row in islice(conversations(seed), ROWS_PER_STEP * steps)
    ))  # fmt: skip
    tokenizer = build_tokenizer()
    tokenizer.add_tokens([word.rstrip(",") for word in (OPENING, *RIVALS)])
    return train_base(base_recipe(folder, rows, seed, steps, ROWS_PER_STEP), tokenizer, random_model(tokenizer, seed))


def write_pairs(path: Path, seed: int, rows: int, *, rivals: bool = False) -> list[dict[str, Any]]:
    """The demo's pairs as a writer of synthetic answers would begin them."""
    rng = random.Random(f"pairs/{seed}")
    made = []
    for one in islice(pairs("train", seed), rows):
        chosen, rejected = _opened(rng, BETTER, one.chosen, rivals), _opened(rng, WORSE, one.rejected, rivals)
        made.append(preference(replace(one, chosen=chosen, rejected=rejected)))
    write_rows(path, made)
    return made


def build_writer(folder: Path, policy: Path, rows: Sequence[dict[str, Any]], seed: int, steps: int) -> Path:
    """A model that writes like the better answers: whose near-certain tokens p_max speaks of."""
    from preftune.pipeline import run_pipeline
    from preftune.recipes import resolve

    data = folder / "better.jsonl"
    write_rows(data, ({"prompt": row["prompt"], "completion": row["chosen"]} for row in rows))
    run_pipeline(
        resolve(
            {
                "method": "sft", "name": "writer", "output": str(folder / "writer"), "seed": seed,
                "model": {"path": str(policy)}, "data": [{"path": str(data)}], "log": {"sinks": []},
                "train": {**TRAIN, "steps": steps, "learning_rate": 1e-3},
            }
        )
    )  # fmt: skip
    return folder / "writer" / "final"


def write_outputs(path: Path, policy: Path, seed: int, prompts: int) -> None:
    """The policy's own answers to questions about held-out topics, ordered by the task's rule."""
    from preftune.config import ModelConfig, SamplingConfig, TokensConfig
    from preftune.engine import Engine
    from preftune.models import load_policy
    from preftune.sampling.local import LocalSampler
    from preftune.tokens import TokenContract

    loaded = load_policy(ModelConfig(path=str(policy)))
    contract = TokenContract(loaded.tokenizer, TokensConfig(), loaded.generation_eos)
    rng, topics = random.Random(f"outputs/{seed}"), split_topics(seed)["test"]
    asked = [(topic, ask(rng, topic)) for topic in islice(_again(topics), prompts)]
    given = [contract.prompt(Example((Message("user", text),))) for _, text in asked]
    drawn = LocalSampler(Engine(loaded), contract).sample(
        given, ANSWERS, SamplingConfig(max_tokens=64), seed=seed, policy_version=0
    )
    write_rows(path, (
        {"prompt": [message("user", text)],
         "responses": [{"content": one.text, "score": _worth(one.text, topic)} for one in group.completions]}
        for (topic, text), group in zip(asked, drawn, strict=True)
    ))  # fmt: skip


def _again(topics: Sequence[str]) -> Iterator[str]:
    while True:
        yield from topics


def _worth(text: str, topic: str) -> float:
    """The task's order: friendly on topic, then on topic, then the rest."""
    return float(is_on_topic(text, topic)) * (2.0 if is_friendly(text) else 1.0)


def run_seed(folder: Path, seed: int, *, rivals: bool = False, quick: bool = False) -> list[Arm]:
    """One seed: the policy, the pairs, the writer, the outputs, and the reward models of `debias`: with p_max, or among
    rivals, with these stripped as well.

    Args:
        quick: a few steps of each, after which the policy writes nothing that could be put in order.
    """
    import torch

    torch.set_num_threads(1)  # threads of tiny models wait for each other
    folder.mkdir(parents=True, exist_ok=True)
    policy = build_policy(folder / "policy", seed, 20 if quick else STEPS, rivals=rivals)
    rows = write_pairs(folder / "pairs.jsonl", seed, 300 if quick else ROWS, rivals=rivals)
    settings: dict[str, Any] = {
        "data": [{"path": str(folder / "pairs.jsonl")}], "seed": seed, "model": {"path": str(policy)},
        "train": {**TRAIN, "steps": 4 if quick else 120}, "held_out": 0.15, "strip": [OPENING],
    }  # fmt: skip
    if not quick:
        write_outputs(folder / "outputs.jsonl", policy, seed, PROMPTS)
        settings["policy_outputs"] = str(folder / "outputs.jsonl")
    if rivals:
        plain = _arms(settings, folder / "debiased")
        *_, more = _arms({**settings, "strip": [OPENING, *RIVALS]}, folder / "rivals")
        return [*plain, replace(more, name=f"stripped, {' and '.join(RIVALS)} too")]
    writer = build_writer(folder, policy, rows, seed, 2 if quick else 100)
    settings["loss"] = {"p_max": P_MAX, "generator": str(writer)}
    settings["train"]["reference_cache"] = str(folder / "cache")
    return _arms(settings, folder / "debiased")


def _arms(settings: Mapping[str, Any], folder: Path) -> list[Arm]:
    found = debias(DebiasConfig.model_validate(settings), folder)
    left = ", ".join(one.mark.opening for one in found.leftovers)
    print(f"{folder}: auto would strip {', '.join(found.proposed)}; leftovers {left or 'none'}", file=sys.stderr)
    return list(found.arms)


def training_table(results: Mapping[int, Sequence[Arm]]) -> Iterator[str]:
    """Accuracy of each reward model by seed and over all, and the change against the raw one, as Markdown."""
    arms = next(iter(results.values()))
    # What is stripped differs from one call to another, so stripped rows can be compared within a call alone.
    measured = [what for what in MEASURED if all(what in arm.accuracy for arm in arms)]
    if any(RIVALS[0] in arm.name for arm in arms):
        measured.remove(STRIPPED)
    yield f"| trained on | seed | {' | '.join(measured)} |"
    yield "|---" * (2 + len(measured)) + "|"
    for place, arm in enumerate(arms):
        for seed, result in results.items():
            cells = [f"{100 * result[place].interval(what).value:.1f} %" for what in measured]
            yield f"| {arm.name} | {seed} | {' | '.join(cells)} |"
        cells = []
        for what in measured:
            own = [value for result in results.values() for value in result[place].accuracy[what]]
            raw = [value for result in results.values() for value in result[0].accuracy[what]]
            cell = _text(share_interval(own))
            cells.append(cell if not place else f"{cell}; {_change(paired_difference(raw, own))}")
        yield f"| **{arm.name}** | all | {' | '.join(cells)} |"


def _text(found: Interval) -> str:
    return f"{100 * found.value:.1f} % ({100 * found.low:.1f} … {100 * found.high:.1f})"


def _change(found: Interval) -> str:
    if not found.is_bounded:
        return f"{100 * found.value:+.1f} points"
    return f"{100 * found.value:+.1f} points ({100 * found.low:+.1f} … {100 * found.high:+.1f})"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0,1,2", help="of the chat task, separated by commas (default 0,1,2)")
    parser.add_argument("--folder", type=Path, help="new folder for everything (default: a temporary one)")
    parser.add_argument("--rivals", action="store_true", help="harmless openings where the planted one is not")
    parser.add_argument("--quick", action="store_true", help="a few steps of each, to see that all parts work")
    options = parser.parse_args(arguments)
    start = time.perf_counter()
    print("\n".join(planted_table()), flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        results = {}
        for seed in map(int, options.seeds.split(",")):
            results[seed] = run_seed(folder / f"seed-{seed}", seed, rivals=options.rivals, quick=options.quick)
    print("\n" + "\n".join(training_table(results)))
    print(f"\n{time.perf_counter() - start:.0f} s in all", file=sys.stderr)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
