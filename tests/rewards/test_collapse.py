"""Measures of collapse: values worked by hand, and the longest shared substring against the plain search."""

import itertools
import random

import pytest

from preftune.rewards.collapse import distinct_n, longest_shared_substring, repetition


@pytest.mark.parametrize(
    ("texts", "n", "expected"),
    [
        (["a b c"], 2, 1.0),
        (["a b a b"], 2, 2 / 3),  # ab, ba, ab
        (["a b", "a b", "a b", "c d"], 2, 2 / 4),
        (["yes"] * 8, 2, 1 / 8),  # shorter than n: one n-gram each
        (["", ""], 2, 1 / 2),
        (["a a a a"], 1, 1 / 4),
        ([], 2, 1.0),
    ],
)
def test_distinct_n(texts, n, expected):
    assert distinct_n(texts, n) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("text", "n", "expected"),
    [
        ("a b c d e", 4, 0.0),
        ("a a a a a a", 4, 2 / 3),  # three n-grams, one different
        ("a b a b a b", 2, 3 / 5),  # ab ba ab ba ab
        ("short", 4, 0.0),
        ("", 4, 0.0),
    ],
)
def test_repetition(text, n, expected):
    assert repetition(text, n) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("texts_by_prompt", "expected"),
    [
        ([["abcdefg"], ["xxcdefyy"]], 4),
        ([["same text", "same text"], ["other"]], 1),  # only "t", "e" between the prompts
        ([["aaaa"], ["aaaaaaa"]], 4),
        ([["ab", "cd"], ["bc"]], 1),  # no substring runs across two texts
        ([["only one prompt"]], 0),
        ([[], ["a"]], 0),
        ([[""], [""]], 0),
        ([], 0),
        ([["мир и война"], ["война и мир"]], 5),
    ],
)
def test_longest_shared_substring(texts_by_prompt, expected):
    assert longest_shared_substring(texts_by_prompt) == expected


def test_longest_shared_substring_against_plain_search():
    def plain(texts_by_prompt):
        best = 0
        for one, other in itertools.combinations(texts_by_prompt, 2):
            for a, b in itertools.product(one, other):
                for start, end in itertools.combinations(range(len(a) + 1), 2):
                    if a[start:end] in b:
                        best = max(best, end - start)
        return best

    rng = random.Random(0)
    for _ in range(300):
        texts = [["".join(rng.choices("ab", k=rng.randrange(12))) for _ in range(rng.randrange(4))] for _ in range(4)]
        assert longest_shared_substring(texts) == plain(texts), texts


def test_cap_bounds_what_is_looked_at():
    long = "".join(random.Random(1).choices("abcdefgh", k=1000))
    assert longest_shared_substring([[long], [long]]) == 1000
    assert longest_shared_substring([[long], [long]], cap=300) == 150
