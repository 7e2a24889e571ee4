"""Training rows against test rows: n-grams and whole prompts, against counting by hand."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from preftune.curation.audit.config import OverlapConfig
from preftune.curation.audit.overlap import Held, Overlap, ngrams
from preftune.curation.audit.row import Reading
from preftune.curation.audit.run import _in_test
from preftune.curation.audit.texts import Places, words
from preftune.records import Example, Message

WORDS = [f"w{n}" for n in range(400)]


def run(test: list[Example], train: list[Example], **config: Any) -> tuple[Overlap, list[Held], list[list[str]]]:
    overlap, places = Overlap(OverlapConfig(**config)), Places()
    for example in test:
        overlap.add(example)
    overlap.close()
    found = [[finding.note for finding in _in_test(overlap, Reading.of(one), places.add(one.where))] for one in train]
    return overlap, list(overlap.rows(places)), found


def row(prompt: Any, number: int, *answers: str, of: str = "train") -> Example:
    return Example(prompt, answers, where=f"{of}.jsonl:{number}")


def grams(text: str, n: int) -> set[tuple[str, ...]]:
    said = words(text)
    return {tuple(said[at : at + n]) for at in range(len(said) - n + 1)}


@pytest.mark.parametrize("n", [2, 5, 13])
def test_shares_are_those_of_sets_of_ngrams(n: int) -> None:
    rng = random.Random(n)
    train_texts = [" ".join(rng.choices(WORDS, k=rng.randint(1, 60))) for _ in range(30)]
    test_texts = []
    for _ in range(20):  # a test text is its own words, with a piece of a training text in the middle
        piece = rng.choice(train_texts).split()
        own = rng.choices(WORDS, k=rng.randint(0, 20))
        at = rng.randrange(len(piece))
        test_texts.append(" ".join([*own, *piece[at : at + rng.randint(0, 40)], *rng.choices(WORDS, k=5)]))
    _, held, found = run(
        [row(text, i, of="test") for i, text in enumerate(test_texts)],
        [row("x", i, text) for i, text in enumerate(train_texts)],
        ngram=n, common=1000, share=0.2,
    )  # fmt: skip
    train = [grams(text, n) for text in train_texts]
    everything = set().union(*train)
    shares = []
    for one, text in zip(held, test_texts, strict=True):
        mine = grams(text, n)
        assert one.share == (None if not mine else pytest.approx(len(mine & everything) / len(mine)))
        most = max((len(mine & other) for other in train), default=0)
        if most:
            best = int(one.found_at.split(":")[1])
            assert len(mine & train[best]) == most and one.found == train_texts[best]
        else:
            assert one.found_at == one.found == ""
        shares.append([len(mine & other) / len(mine) if mine else 0.0 for other in train])
    for number, notes in enumerate(found):
        assert bool(notes) == (max(share[number] for share in shares) >= 0.2)
    assert sum(map(bool, found)) > 1  # the case is not empty


@pytest.mark.parametrize(("lengths", "n"), [([4] * 30, 8), ([10] * 30, 10), ([40] * 30, 13), ([9, *[30] * 30], 13)])
def test_n_is_chosen_by_the_test_rows(lengths: list[int], n: int) -> None:
    rng = random.Random(0)
    test = [row(" ".join(rng.choices(WORDS, k=k)), i, of="test") for i, k in enumerate(lengths)]
    assert run(test, [])[0].n == n


def test_a_short_prompt_is_compared_as_a_whole() -> None:
    test = [row("What is 3 + 4?", 1, of="test"), row("What is 3 - 4?", 2, of="test"), row("?!", 3, of="test")]
    overlap, held, found = run(test, [row("what  is 3 + 4 ?", 1), row("what is 3 * 4?", 2), row("¿", 3)])
    assert [one.prompt_at for one in held] == ["train.jsonl:1", "", ""]
    assert [one.share for one in held] == [None] * 3 and overlap.short == 3
    assert found == [["the prompt of a test row"], [], []]


def test_system_messages_and_template_do_not_count() -> None:
    system = "be kind and answer every question that people ask in no more than three long sentences please"
    frame = "solve the following problem step by step and write the final number on a line of its own"
    rng = random.Random(1)

    def chat(number: int, of: str) -> Example:
        text = f"{frame} {' '.join(rng.choices(WORDS, k=20))}"
        return row((Message("system", system), Message("user", text)), number, of=of)

    test, train = [chat(i, "test") for i in range(12)], [chat(i, "train") for i in range(12)]
    _, held, found = run(test, train, ngram=8)
    assert all(one.share == 0 for one in held) and not any(found)
    _, held, _ = run(test, train, ngram=8, common=12)  # without the rule for template it would
    assert all(one.share is not None and one.share > 0.25 for one in held)


def test_answers_of_test_rows_count_where_asked() -> None:
    answer = " ".join(WORDS[:30])
    test, train = [row("tell me of " + " ".join(WORDS[100:120]), 1, answer, of="test")], [row("x", 1, answer)]
    assert run(test, train)[1][0].share == 0
    held = run(test, train, of="row")[1][0]
    assert held.share == pytest.approx(18 / (18 + 11))  # 23 and 30 words


def test_one_prompt_with_many_answers_is_no_template() -> None:
    prompt = " ".join(WORDS[:30])
    test = [row(prompt, i, f"answer {i}", of="test") for i in range(40)]
    assert all(one.share == 1 for one in run(test, [row(prompt, 1)])[1])


def test_running_text_is_looked_for() -> None:
    text = " ".join(WORDS[:50])
    assert run([row("", 1, text, of="test")], [row("", 1, f"before {text}")])[1][0].share == 1


def test_nothing_to_look_for() -> None:
    overlap, held, found = run([row("", 1, of="test"), row("\x00 \ud800", 2, of="test")], [row("a b c", 1, "d")])
    assert [one.share for one in held] == [None, None] and found == [[]] and overlap.short == 2


def test_ngrams_depend_on_order() -> None:
    one = np.array([1, 2, 3, 4], np.uint64)
    assert len(ngrams(one, 2)) == 3 and len(ngrams(one, 5)) == 0
    assert set(ngrams(one, 2)).isdisjoint(ngrams(one[::-1].copy(), 2))
