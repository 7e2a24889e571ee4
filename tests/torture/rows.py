"""Fuzzed data rows through loading and the token contract: a row is used, or refused with a message of its own."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from preftune.config import SourceConfig, TokensConfig
from preftune.data import as_prompts, load_examples
from preftune.errors import DataError, UsageError
from preftune.tokens import TokenContract
from tests import tiny

CHAT = "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"  # noqa: E501
TEXTS = [
    "",
    " ",
    "a",
    "3+4=",
    "7",
    "<eos>",
    "<pad><eos>",
    "\x00",
    "é字🐉",
    "\ud800",
    "a" * 500,
    "line\nline",
    "{{ x }}",
    "\u202e",
]
NAMES = ["prompt", "completion", "answer", "text", "messages", "prompts", "", "role", "content", "Prompt", "é",
         "chosen", "rejected", "label", "responses", "scores", "margin", "score", "rank", "model"]  # fmt: skip
ROLES = ["system", "user", "assistant", "tool", "", "USER", "robot"]
RAW = [b"", b"{", b"null", b"[]", b'"text"', b"12", b"{}", b"\xff\xfe{}", b"{'prompt': 'a'}", b'{"prompt": NaN}',
       b"[" * 3000, b'{"prompt": "a"} trailing', b"\xef\xbb\xbf" + b'{"prompt": "a"}', b'{"prompt": "a", "prompt": 5}',
       b"\x00"]  # fmt: skip


def value(rng: random.Random, depth: int = 0) -> Any:
    """Anything that JSON can hold, likelier what rows hold."""
    kind = rng.randrange(10)
    if kind < 4:
        return rng.choice(TEXTS)
    if kind == 4:
        return rng.choice([None, True, 0, -1, 3.5, 1e308, 10**30])
    if kind == 5 and depth < 3:
        return [value(rng, depth + 1) for _ in range(rng.randrange(4))]
    if kind == 6 and depth < 3:
        return {rng.choice(NAMES): value(rng, depth + 1) for _ in range(rng.randrange(4))}
    return turns(rng)


def turns(rng: random.Random) -> list[Any]:
    """A conversation, mostly a right one."""
    out: list[Any] = []
    for i in range(rng.randrange(5)):
        turn: dict[str, Any] = {
            "role": rng.choice(ROLES) if rng.random() < 0.2 else ("user", "assistant")[i % 2],
            "content": rng.choice(TEXTS) if rng.random() < 0.9 else value(rng, 3),
        }
        if rng.random() < 0.05:
            turn.pop(rng.choice(list(turn)))
        out.append(turn if rng.random() < 0.95 else rng.choice([None, "user", 3]))
    return out


def compared(line: dict[str, Any], rng: random.Random, plain: list[str]) -> None:
    """Right values of the formats that compare completions."""
    if "label" in line:
        line["label"] = rng.choice([True, False])
    if "rejected" in line and "prompt" not in line:
        shared = [{"role": "user", "content": rng.choice(plain)}]
        for name in ("chosen", "rejected"):
            line[name] = [*shared, {"role": "assistant", "content": rng.choice(plain)}]
    if "rejected" in line and rng.random() < 0.3:
        line["rejected"] = [line["rejected"], line["rejected"]]
    if "responses" in line:
        line["responses"] = [{"text": rng.choice(plain), "score": rng.random()} for _ in range(rng.randint(1, 4))]


def row(rng: random.Random) -> bytes:
    """One line: a right row in half of the cases, else one with slips, now and then no row at all."""
    dice = rng.random()
    if dice < 0.05:
        return rng.choice(RAW)
    plain = [text for text in TEXTS if text.strip() and text != "\ud800"]
    shape = rng.choice(
        [("prompt",), ("prompt", "completion"), ("text",), ("messages",), ("prompt", "answer"), ("chosen", "rejected"),
         ("prompt", "chosen", "rejected"), ("prompt", "completion", "label"), ("prompt", "responses")]
    )  # fmt: skip
    line: dict[str, Any] = {name: rng.choice(plain) for name in shape}
    if "messages" in line:
        line["messages"] = [
            {"role": ("user", "assistant")[i % 2], "content": rng.choice(plain)} for i in range(2 * rng.randint(1, 3))
        ]
    compared(line, rng, plain)
    if dice > 0.5:
        for _ in range(rng.randint(1, 3)):
            name = rng.choice([*shape, *NAMES])
            line[name] = turns(rng) if name == "messages" or rng.random() < 0.2 else value(rng)
        if rng.random() < 0.3:
            del line[rng.choice(sorted(line))]
    text = json.dumps(line, ensure_ascii=rng.random() < 0.5)
    return text.encode("utf-8", "surrogatepass")


def check_rows(folder: Path, count: int, seed: int = 0) -> dict[str, int]:
    """Each row alone, with and without its completions. Any error but one for the user ends it.

    Returns:
        How many were used and how many refused.
    """
    rng = random.Random(seed)
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = CHAT
    counts = {"used": 0, "refused": 0}
    path = folder / "row.jsonl"
    for number in range(count):
        line = row(rng)
        path.write_bytes(line + b"\n")
        config = TokensConfig(loss_on=rng.choice(["all-assistant", "last"]), max_prompt_tokens=rng.choice([4, 1000]))
        source = SourceConfig(path=str(path), chat=rng.random() < 0.2, system=rng.choice([None, "be brief"]))
        try:
            examples = list(load_examples([source], seed=0).examples)
            contract = TokenContract(tokenizer, config, (1,))
            data = bool(examples[0].completions) and rng.random() < 0.7
            rows = examples if data else as_prompts(examples)
            groups, kept = contract.prepare(rows, with_completions=data, context_length=300, max_new_tokens=8)
        except (DataError, UsageError) as error:
            counts["refused"] += 1
            if "row.jsonl" not in str(error) and "no row is left" not in str(error):
                raise AssertionError(f"row {number} {line!r}: the message does not say where: {error}") from error
            continue
        except Exception as error:
            raise AssertionError(f"row {number} {line!r}: {type(error).__name__}: {error}") from error
        counts["used"] += 1
        assert kept.kept == len(groups)
        for group in groups:
            assert group.prompt.ids, line
            assert all(0 <= i < len(tokenizer) for i in group.prompt.ids)
            scored = [c.score is not None for c in group.completions]
            assert all(scored) or not any(scored), line
            for c in group.completions:
                assert len(c.ids) == len(c.mask) and c.ids[-1] in contract.eos_ids and any(c.mask), line
    return counts
