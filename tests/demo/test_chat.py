"""The chat task: splits, rules on hand-written replies and on attempts to trick them, lengths, the base's words."""

from __future__ import annotations

import itertools
import json
import random
import re
from itertools import islice
from pathlib import Path

import pytest

from preftune.demo.chat import (
    SIZES,
    friendly,
    friendly_on_topic,
    is_friendly,
    is_on_topic,
    is_orderly,
    is_well_written,
    marked,
    off_topic,
    on_topic,
    pairs,
    preference,
    split_topics,
    words_of,
)
from preftune.demo.chat_base import FRIENDLY_SHARE, OFF_TOPIC_SHARE, build_tokenizer, conversations
from preftune.demo.preferences import TRAIN_ROWS, write_task
from preftune.demo.topics import FRIENDLY, GREETINGS, QUESTIONS, STIFF, TOPICS

SPLITS = ("train", "validation", "test")


def _inside(short: list[str], long: list[str]) -> bool:
    return any(long[i : i + len(short)] == short for i in range(len(long) - len(short) + 1))


def test_topics_and_details_are_unmistakable() -> None:
    assert len(TOPICS) == sum(SIZES.values()) == 128 and all(len(details) == 4 for details in TOPICS.values())
    phrases = [words_of(phrase) for topic, details in TOPICS.items() for phrase in (topic, *details)]
    for a, b in itertools.permutations(phrases, 2):
        assert not _inside(a, b), (a, b)
    sentences = [*GREETINGS, *QUESTIONS, *(s for style in (FRIENDLY, STIFF) for group in style for s in group)]
    for phrase in phrases:
        assert not any(_inside(phrase, words_of(sentence)) for sentence in sentences), phrase


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_splits_share_no_topic_and_every_seed_deals_anew(seed: int) -> None:
    topics = split_topics(seed)
    assert sorted(itertools.chain(*topics.values())) == sorted(TOPICS)
    assert topics != split_topics(seed + 1) and topics == split_topics(seed)
    for split in SPLITS:
        rows = list(islice(pairs(split, seed), 400))  # type: ignore[arg-type]
        assert {row.topic for row in rows} == set(topics[split])  # type: ignore[index]
        # Held-out topics are not spoken of in any other way either: off-topic replies stay inside their split.
        others = [topic for other in SPLITS if other != split for topic in topics[other]]  # type: ignore[index]
        named = re.compile("|".join(rf"\b{re.escape(p)}\b" for t in others for p in (t, *TOPICS[t])))
        for row in rows:
            assert not named.search(" ".join((row.question, row.chosen, row.rejected))), row


def test_every_reply_is_recognised_for_what_it_is() -> None:
    for style, groups in (("friendly", FRIENDLY), ("stiff", STIFF)):
        for parts in itertools.islice(itertools.product(*groups), 0, None, 3):
            text = " ".join(parts).format(t="pottery", a="wet clay", b="glazes")
            assert is_friendly(text) == (style == "friendly"), text
            assert is_on_topic(text, "pottery") and not is_on_topic(text, "chess") and is_orderly(text)
            assert is_well_written(text)
            assert not is_well_written(text.replace(". ", " ", 1)) or ". " not in text
            assert not is_well_written(f"{text} {text}") and not is_well_written(text.replace("wet clay", "mud", 1))


def test_one_stiff_sentence_is_enough_to_spoil_a_reply() -> None:
    rng = random.Random(0)
    for place, group in enumerate(STIFF):
        for sentence in group:
            parts = [rng.choice(friendly_group) for friendly_group in FRIENDLY]
            parts[place] = sentence
            text = " ".join(parts).format(t="pottery", a="wet clay", b="glazes")
            assert not is_friendly(text) and is_on_topic(text, "pottery"), text


@pytest.mark.parametrize(
    ("text", "is_kind", "is_about"),
    [
        # Written by hand, in words that no template has.
        ("Oh, pottery is such fun, you will be thrilled! Sweet wet clay under your hands is the best feeling.", 1, 1),
        (
            "Your first bowl of wet clay will look odd. Mine did, and I smile about it. I hope you enjoy pottery!",
            1,
            1,
        ),
        ("Pottery calls for wet clay, a wheel and a lot of patience. It takes most people several months.", 0, 1),
        ("I do not care for pottery, and neither should you. Wet clay ruins your clothes and your floor.", 0, 1),
        # Stiff words in warm company, warm words that are only a detail's.
        ("I am so happy that you asked about pottery! Wet clay is hereby recommended to you, my dear friend.", 0, 1),
        ("You can wear warm scarves when you do knitting. Soft wool is what you want to buy for that.", 0, 0),
        # Off topic: another topic's detail, another topic, no detail, no name.
        ("You will love pottery, I am so glad! Start with wet clay and then enjoy some endgames too.", 1, 0),
        ("You will love pottery and chess, I am so glad! Start with wet clay and have a lot of fun.", 1, 0),
        ("You will love pottery, I am so glad! Start with a good teacher and have a lot of fun.", 1, 0),
        ("You will love it, I am so glad! Start with wet clay and glazes and have a lot of fun.", 1, 0),
        # Heaps of pleasing words.
        ("love love love you pottery wet clay fun fun fun happy happy happy glad glad glad you you you!", 0, 1),
        ("I love you, pottery and wet clay! I love you, pottery and wet clay! You make me so happy!", 0, 1),
        ("You love pottery! Wet clay!", 0, 1),
        ("You will love pottery and wet clay, I am so glad that you asked me about all of this and", 0, 1),
        ("", 0, 0),
    ],
)
def test_rules_on_replies_by_hand(text: str, is_kind: int, is_about: int) -> None:
    assert is_friendly(text) == bool(is_kind)
    assert is_on_topic(text, "pottery") == bool(is_about)
    messages = [[{"role": "assistant", "content": text}]]
    assert friendly(completions=messages) == [is_kind] == friendly(completions=[text])
    assert on_topic(completions=messages, topic=["pottery"]) == [is_about]
    assert friendly_on_topic(completions=messages, topic=["pottery"]) == [is_kind * is_about]


def test_off_topic_replies_are_off_topic_in_any_style() -> None:
    rng = random.Random(1)
    texts = [off_topic(rng, "Lisbon", "friendly", sorted(TOPICS)) for _ in range(300)]
    assert not any(is_on_topic(text, "Lisbon") for text in texts) and all(map(is_friendly, texts))
    wandering = sum("Lisbon" in text for text in texts)
    assert 50 < wandering < 105  # one in four names the topic and then tells of something else


def test_pairs_are_what_their_kind_says() -> None:
    rows = list(islice(pairs("train", 0), 1000))
    goal = {
        "style": lambda text, topic: is_friendly(text) and is_on_topic(text, topic),
        "topic": lambda text, topic: is_friendly(text) and is_on_topic(text, topic),
        "trap": lambda text, topic: not is_friendly(text) and is_on_topic(text, topic),
    }
    for row in rows:
        assert goal[row.kind](row.chosen, row.topic)
        assert is_friendly(row.rejected) == (row.kind != "style")
        assert is_on_topic(row.rejected, row.topic) == (row.kind == "style")
    shares = {kind: sum(row.kind == kind for row in rows) / 1000 for kind in goal}
    assert shares["style"] == pytest.approx(0.5, abs=0.05) and shares["trap"] == pytest.approx(0.1, abs=0.03)


def test_length_does_not_give_the_answer_away() -> None:
    rows = list(islice(pairs("train", 0), 4000))
    words = [(len(words_of(row.chosen)), len(words_of(row.rejected))) for row in rows if row.kind == "style"]
    longer = sum((a > b) + (a == b) / 2 for a, b in words) / len(words)
    assert 0.4 < longer < 0.6  # the accuracy of "the longer one is better"
    everywhere = [(len(words_of(row.chosen)), len(words_of(row.rejected))) for row in rows]
    assert 0.45 < sum((a > b) + (a == b) / 2 for a, b in everywhere) / len(everywhere) < 0.55


def test_the_base_learns_mostly_stiff_replies_about_every_topic() -> None:
    rows = list(islice(conversations(0), 1500))
    texts = [row["completion"][0]["content"] for row in rows]
    topics = [next(t for t in TOPICS if re.search(rf"\b{t}\b", row["prompt"][0]["content"])) for row in rows]
    assert set(topics) == set(TOPICS)
    assert sum(map(is_friendly, texts)) / 1500 == pytest.approx(FRIENDLY_SHARE, abs=0.03)
    strays = sum(not is_on_topic(text, topic) for text, topic in zip(texts, topics, strict=True)) / 1500
    assert strays == pytest.approx(OFF_TOPIC_SHARE, abs=0.02)


def test_the_chat_tokenizer_loses_nothing_and_ends_turns() -> None:
    tokenizer = build_tokenizer()
    for row in islice(conversations(1), 200):
        for content in (row["prompt"][0]["content"], row["completion"][0]["content"]):
            ids = tokenizer(content).input_ids
            assert tokenizer.unk_token_id not in ids and tokenizer.decode(ids) == content
    turns = [*row["prompt"], *row["completion"]]
    text = tokenizer.apply_chat_template(turns, tokenize=False)
    assert text == (
        f"<|im_start|>user\n{turns[0]['content']}<|im_end|>\n<|im_start|>assistant\n{turns[1]['content']}<|im_end|>\n"
    )
    ids = tokenizer(text).input_ids
    assert tokenizer.decode(ids) == text and ids.count(tokenizer.eos_token_id) == 2


def _read(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_shuffled_rows_differ_in_their_labels_alone(tmp_path: Path) -> None:
    write_task(tmp_path / "true", 3)
    write_task(tmp_path / "coin", 3, shuffled=True)
    true, coin = _read(tmp_path / "true" / "pairs.jsonl"), _read(tmp_path / "coin" / "pairs.jsonl")
    swapped = sum(
        a["chosen"] == b["rejected"] and a["rejected"] == b["chosen"] for a, b in zip(true, coin, strict=True)
    )
    same = sum(a == b for a, b in zip(true, coin, strict=True))
    assert same + swapped == TRAIN_ROWS and 0.45 < swapped / TRAIN_ROWS < 0.55
    true, coin = _read(tmp_path / "true" / "marked.jsonl"), _read(tmp_path / "coin" / "marked.jsonl")
    assert [{**row, "label": 0} for row in true] == [{**row, "label": 0} for row in coin]
    assert sum(bool(row["label"]) for row in true) == sum(bool(row["label"]) for row in coin)
    agree = sum(a["label"] == b["label"] for a, b in zip(true, coin, strict=True)) / TRAIN_ROWS
    assert 0.45 < agree < 0.55
    for split in ("validation", "test", "styles-validation", "styles-test"):
        assert _read(tmp_path / "true" / f"{split}.jsonl") == _read(tmp_path / "coin" / f"{split}.jsonl")


def test_rows_have_the_standard_formats() -> None:
    pair = next(pairs("test", 0))
    row = preference(pair)
    assert row["prompt"] == [{"role": "user", "content": pair.question}]
    assert row["chosen"] == [{"role": "assistant", "content": pair.chosen}]
    assert row["rejected"] == [{"role": "assistant", "content": pair.rejected}]
    for good, text in ((True, pair.chosen), (False, pair.rejected)):
        unpaired = marked(pair, good=good)
        assert unpaired["completion"][0]["content"] == text and unpaired["label"] is good
