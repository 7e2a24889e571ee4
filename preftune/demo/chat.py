"""The chat task: friendly, personal replies that stay on topic are preferred over stiff ones. Made from a seed.

One row of preferences, and one of marked replies:

    {"prompt": [{"role": "user", "content": "Hello! How do people begin with pottery?"}],
     "chosen": [{"role": "assistant", "content": "You made me smile by bringing up pottery! …"}],
     "rejected": [{"role": "assistant", "content": "The matter of pottery requires due consideration. …"}],
     "topic": "pottery", "kind": "style"}
    {"prompt": […], "completion": [{"role": "assistant", "content": "…"}], "label": true, "topic": …, "kind": …}

Kinds of pairs, so that style alone does not win: `style` (friendly over stiff, both on topic), `topic` (on topic over
off topic, both friendly), `trap` (stiff and on topic over friendly and off topic). The order behind them is friendly
on topic, then stiff on topic, then friendly off topic.

Splits never share a topic. `friendly`, `on_topic` and `friendly_on_topic` are rules on any text: they know lists of
words, not the sentences that replies are made of; `well_written` knows nothing but those. All are rewards in TRL's
form (docs/rewards.md).
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Literal, TypeAlias

from preftune.demo.topics import FRIENDLY, GREETINGS, QUESTIONS, STIFF, TOPICS

Split: TypeAlias = Literal["train", "validation", "test"]
Style: TypeAlias = Literal["friendly", "stiff"]
Kind: TypeAlias = Literal["style", "topic", "trap"]

SIZES: dict[Split, int] = {"train": 88, "validation": 10, "test": 30}
"""Topics of each split."""
KINDS: dict[Kind, float] = {"style": 0.5, "topic": 0.4, "trap": 0.1}
"""Shares of the kinds of pairs."""


def _set(text: str) -> frozenset[str]:
    return frozenset(text.split())


ADDRESS = _set("you your yours yourself you'll you're us friend")
WARM = _set(
    "amazed amazing awesome bet cheering cheers curious delight delighted enjoy enjoyable excited exciting favorite "
    "friend fun glad great happily happy hope joy kind love loved lovely magic smile smiling surprised sweet thank "
    "thanks thrilled treat warm warmly welcome wonderful"
)
STIFF_WORDS = _set(
    "adequate advisable advised aforementioned applicable assessment compliance concerning conjunction deemed "
    "department deviations directed documentation due exclusively expected furthermore hereby herewith inquiry "
    "instructed issued liability mandatory neglect notified obtain pertains permissible persons prerequisite prior "
    "procedure provision provisions pursuant recommended reference regarding relevance remarks required requires "
    "retain shall statement submitted subsequent subsequently therefore thus whereas written"
)
SHORTEST, LONGEST = 12, 60
"""Words of an orderly reply."""

_PHRASES = {phrase.lower(): topic for topic, details in TOPICS.items() for phrase in (topic, *details)}
_NAMED = re.compile(r"\b(?:" + "|".join(sorted(map(re.escape, _PHRASES), key=len, reverse=True)) + r")\b")

_WELL_WRITTEN = frozenset(
    " ".join(parts).format(t="#", a="#", b="#").lower() for style in (FRIENDLY, STIFF) for parts in product(*style)
)


# ------------------------------------------------------------------------------------------------------- rules


def words_of(text: str) -> list[str]:
    """Lower-case words, in order."""
    return re.findall(r"[^\W\d_]+(?:'[^\W\d_]+)?", text.lower())


def is_orderly(text: str) -> bool:
    """Sentences, not a heap of pleasing words: 12 to 60 words, two to five sentences of four words or more, a stop at
    the end, and no three words in a row that come twice."""
    words = words_of(text)
    sentences = [part for part in re.split(r"[.!?]+", text) if part.strip()]
    triples = list(zip(words, words[1:], words[2:], strict=False))
    return (
        SHORTEST <= len(words) <= LONGEST
        and 2 <= len(sentences) <= 5
        and all(len(words_of(part)) >= 4 for part in sentences)
        and text.rstrip().endswith((".", "!", "?"))
        and len(set(triples)) == len(triples)
    )


def is_friendly(text: str) -> bool:
    """An orderly reply that speaks to the user, has two signs of warmth or more (words, or an exclamation mark) and no
    stiff word. Topics and details are left out first: "warm scarves" are no sign of warmth."""
    words = words_of(_NAMED.sub(" ", text.lower()))
    warmth = sum(word in WARM for word in words) + ("!" in text)
    return is_orderly(text) and warmth >= 2 and not ADDRESS.isdisjoint(words) and STIFF_WORDS.isdisjoint(words)


def is_on_topic(text: str, topic: str) -> bool:
    """It names the topic and a detail of it, and neither the name nor a detail of any other topic."""
    named = set(_NAMED.findall(text.lower()))
    return topic.lower() in named and len(named) > 1 and all(_PHRASES[phrase] == topic for phrase in named)


def is_well_written(text: str) -> bool:
    """Word for word an opening, a middle and a closing of one style, with some topic and details in their places:
    stricter than any rule, and blind to anything new. It tells whether a reply earned its marks by honest means."""
    return _NAMED.sub("#", text.lower()) in _WELL_WRITTEN


def _texts(completions: Iterable[Any]) -> list[str]:
    return [c if isinstance(c, str) else " ".join(message["content"] for message in c) for c in completions]


def friendly(completions: Sequence[Any], **columns: Any) -> list[float]:
    """1 for a friendly reply, whatever it is about."""
    return [float(is_friendly(text)) for text in _texts(completions)]


def on_topic(completions: Sequence[Any], topic: Sequence[str], **columns: Any) -> list[float]:
    """1 for a reply that stays on the row's topic, however it is written."""
    return [float(is_on_topic(text, about)) for text, about in zip(_texts(completions), topic, strict=True)]


def friendly_on_topic(completions: Sequence[Any], topic: Sequence[str], **columns: Any) -> list[float]:
    """1 for a friendly reply that stays on the row's topic: what the preferences ask for."""
    texts = _texts(completions)
    return [float(is_friendly(text) and is_on_topic(text, about)) for text, about in zip(texts, topic, strict=True)]


def well_written(completions: Sequence[Any], **columns: Any) -> list[float]:
    """1 for a reply made of whole sentences of this world, in their order."""
    return [float(is_well_written(text)) for text in _texts(completions)]


# ------------------------------------------------------------------------------------------------------- texts


@dataclass(frozen=True, slots=True)
class Pair:
    """Two replies to one question about `topic`, the better one first."""

    question: str
    chosen: str
    rejected: str
    topic: str
    kind: Kind


def split_topics(seed: int) -> dict[Split, list[str]]:
    """Which topics belong to which split: every seed deals them anew."""
    dealt = sorted(TOPICS)
    random.Random(f"topics/{seed}").shuffle(dealt)
    out: dict[Split, list[str]] = {}
    for split, size in SIZES.items():
        out[split], dealt = dealt[:size], dealt[size:]
    return out


def ask(rng: random.Random, topic: str) -> str:
    """A question about a topic."""
    return f"{rng.choice(GREETINGS)} {rng.choice(QUESTIONS).format(t=topic)}".strip()


def reply(rng: random.Random, topic: str, style: Style, *, details_of: str | None = None) -> str:
    """A reply about a topic; `details_of` another topic makes one that begins well and wanders off."""
    opening, middle, closing = map(rng.choice, FRIENDLY if style == "friendly" else STIFF)
    a, b = rng.sample(TOPICS[details_of or topic], 2)
    return f"{opening} {middle} {closing}".format(t=topic, a=a, b=b)


def off_topic(rng: random.Random, topic: str, style: Style, others: Sequence[str]) -> str:
    """A reply about another topic, or (one in four) one that names the topic but tells of another's details."""
    other = rng.choice([name for name in others if name != topic])
    return reply(rng, topic, style, details_of=other) if rng.random() < 1 / 4 else reply(rng, other, style)


def pairs(split: Split, seed: int, kinds: Mapping[Kind, float] = KINDS) -> Iterator[Pair]:
    """Endless pairs about the topics of one split, each topic once before any comes again; `kinds`: shares."""
    topics = split_topics(seed)[split]
    rng = random.Random(f"pairs/{split}/{seed}")
    while True:
        for topic in rng.sample(topics, len(topics)):
            kind: Kind = rng.choices(list(kinds), list(kinds.values()))[0]
            good = reply(rng, topic, "stiff" if kind == "trap" else "friendly")
            bad = reply(rng, topic, "stiff") if kind == "style" else off_topic(rng, topic, "friendly", topics)
            yield Pair(ask(rng, topic), good, bad, topic, kind)


def preference(pair: Pair) -> dict[str, Any]:
    """A row of the preference format."""
    return {
        "prompt": [message("user", pair.question)],
        "chosen": [message("assistant", pair.chosen)],
        "rejected": [message("assistant", pair.rejected)],
        "topic": pair.topic,
        "kind": pair.kind,
    }


def marked(pair: Pair, *, good: bool) -> dict[str, Any]:
    """A row of the unpaired format: one reply of a pair and whether it is the better one."""
    return {
        "prompt": [message("user", pair.question)],
        "completion": [message("assistant", pair.chosen if good else pair.rejected)],
        "label": good,
        "topic": pair.topic,
        "kind": pair.kind,
    }


def message(role: str, content: str) -> dict[str, str]:
    """A turn of a conversation."""
    return {"role": role, "content": content}


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    """Write JSON lines, replacing the file if it exists."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return path
