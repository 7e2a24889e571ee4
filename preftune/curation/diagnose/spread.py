"""How different the answers to one prompt are, and how likely the model finds them and the data's own answers."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from functools import partial
from itertools import combinations

import numpy as np

from preftune.curation.diagnose.answers import Answered, Likely
from preftune.curation.diagnose.config import DiagnoseConfig
from preftune.curation.diagnose.form import show
from preftune.curation.diagnose.measure import (
    Measure,
    Normal,
    Scale,
    Status,
    Worst,
    over_prompts,
    percent,
    share_of,
    told,
    worst_of,
)
from preftune.curation.embeddings import Floats
from preftune.intervals import Interval
from preftune.rewards.collapse import distinct_n
from preftune.rewards.math import FIRST_NUMBER
from preftune.rewards.numbers import parse_number
from preftune.rewards.text import accepted_answers

LONG = 6
"""Words from which equal answers are no accident of a short answer."""
SAME = 0.5
"""Distinct share of long answers below which there is little to choose from."""
SHARED = (0.02, 0.1)
"""Shares of long answers that are given to several prompts: look, problem."""
UNLIKE = 0.9
"""Distance of two answers to one prompt, over that of answers to different prompts, from which prompts hardly count."""
CERTAIN = -0.02
"""Mean log π per token of own answers above which the model has one answer only."""
GUESSES = (0.7, 0.9)
"""Shares of −ln V from which own answers are nearly guesses: look, problem."""
GAP = (1.0, 2.0)
"""Nats per token by which good answers are less likely than own ones: look, problem."""
AGREE = 0.5
"""Share of numeric answers that agree below which the model guesses."""

_SPACES = re.compile(r"\s+")


def last_number(text: str) -> str | None:
    """The last number of a text, in one form for equal ones (1,000 and 1000.0)."""
    found = None
    for match in FIRST_NUMBER.finditer(text):
        found = match
    if found is None:
        return None
    number = parse_number(found.group().rstrip(".,"))
    return None if number is None else str(number.normalize())


def same(text: str) -> str:
    """What two equal answers share: the text without regard to case and white space."""
    return _SPACES.sub(" ", text).strip().casefold()


def measure_spread(
    config: DiagnoseConfig, answered: Sequence[Answered], vectors: Floats, vocabulary: int
) -> list[Measure]:
    """The measures of spread, and `numbers` of every prompt filled.

    Args:
        vectors: [answers of all prompts, d], in order, of length 1 or 0.
    """
    return [
        _distinct(answered),
        _distance(answered, vectors),
        _shared(answered),
        _consistency(config, answered),
        _own(answered, vocabulary),
        _good(answered),
    ]


def _words(answered: Sequence[Answered]) -> float:
    return float(np.mean([len(text.split()) for one in answered for text in one.texts]))


def _distinct(answered: Sequence[Answered]) -> Measure:
    measure = Measure("distinct", "Different answers to a prompt", "spread")
    measure.normal = [
        Normal(f"above {percent(SAME)} where answers are long; short ones may well be equal", "rule of thumb")
    ]  # fmt: skip
    shares: list[list[float]] = []
    scored = []
    for one in answered:
        if len(one.texts) < 2:
            continue
        counts = Counter(map(same, one.texts))
        share = (len(counts) - 1) / (len(one.texts) - 1)
        one.numbers["distinct"] = share
        shares.append([share])
        common, count = counts.most_common(1)[0]
        if count > 1:
            place = next(n for n, text in enumerate(one.texts) if same(text) == common)
            scored.append((count, lambda one=one, place=place, count=count: show(one, place, ("times", count))))
    measure.interval = _clipped(over_prompts(shares))
    if measure.interval is None:
        measure.says = "One answer to each prompt has no spread; set `answers` to 2 or more."
        return measure
    words = _words(answered)
    firsts = distinct_n([one.texts[0] for one in answered])
    measure.more = {"distinct_2": firsts, "words": words}
    measure.says = (
        f"0: all the same, 1: all different. Answers have {words:.1f} words; of the word pairs in one answer to each "
        f"prompt {percent(firsts)} are different."
    )
    measure.scale = Scale(0.0, 1.0, [(SAME, "look" if words >= LONG else "fine"), (1.0, "fine")])
    measure.status = "look" if measure.interval.value < SAME and words >= LONG else "fine"
    if measure.is_wrong:
        measure.remedy = "sft"
        measure.todo = (
            "Methods that compare a model's own answers (grpo, rft, iterative-dpo) find little to compare: raise the "
            "temperature, or start from SFT on different answers. Methods on fixed pairs (dpo) do not mind."
        )
    measure.worst = worst_of(scored)
    return measure


def _distance(answered: Sequence[Answered], vectors: Floats) -> Measure:
    measure = Measure("distance", "Distance of two answers to one prompt", "spread", "number")
    within: list[list[float]] = []
    words: list[float] = []
    middles, at = [], 0
    for one in answered:
        rows = vectors[at : at + len(one.texts)]
        at += len(one.texts)
        filled = rows[np.linalg.norm(rows, axis=1) > 0]
        if len(filled):
            middles.append(filled[0])
        if len(filled) >= 2:
            i, j = np.triu_indices(len(filled), 1)
            mean = max(0.0, float((1 - (filled @ filled.T)[i, j]).mean()))
            within.append([mean])
            one.numbers["distance"] = mean
        pairs = [(set(x.casefold().split()), set(y.casefold().split())) for x, y in combinations(one.texts, 2)]
        words += [1 - len(x & y) / len(x | y) for x, y in pairs if x | y]
    measure.interval = over_prompts(within)
    if measure.interval is None:
        measure.says = "Fewer than two answers that hold anything to any prompt."
        return measure
    apart = _apart(np.stack(middles))
    measure.more = {"other_prompts": apart, "word_distance": float(np.mean(words)) if words else None}
    said = f" By their words (Jaccard) it is {np.mean(words):.2f}." if words else ""
    measure.says = f"1 − cosine in the encoder.{said}"
    if apart is None:
        return measure
    measure.normal = [Normal(f"below that of answers to different prompts, {apart:.2f}", "this data")]
    if apart > 0.05:
        measure.scale = Scale(0.0, max(1.0, apart), [(UNLIKE * apart, "fine"), (max(1.0, apart), "look")])
    measure.status = "look" if apart > 0.05 and measure.interval.value > UNLIKE * apart else "fine"
    if measure.is_wrong:
        measure.remedy = "sft"
        measure.todo = (
            "Two answers to one prompt are as unlike as answers to different prompts: what is said hardly depends on "
            "what is asked. Look at the template (`form`) and the temperature first, then SFT on good answers."
        )
    return measure


def _apart(rows: Floats) -> float | None:
    """Mean 1 − cosine of all pairs, without making them: (|Σv|² − Σ|v|²) is twice the sum over pairs."""
    n = len(rows)
    if n < 2:
        return None
    total = rows.sum(0, dtype=np.float64)
    return float(1 - (total @ total - (rows.astype(np.float64) ** 2).sum()) / (n * (n - 1)))


def _shared(answered: Sequence[Answered]) -> Measure:
    measure = Measure("shared", "Long answers given to several prompts", "spread")
    measure.normal = [
        Normal(f"none; look above {percent(SHARED[0])}, a problem above {percent(SHARED[1])}", "rule of thumb")
    ]
    owners: dict[str, set[int]] = {}
    for place, one in enumerate(answered):
        for text in one.texts:
            owners.setdefault(same(text), set()).add(place)
    rows: list[list[bool]] = []
    scored = []
    long = 0
    for one in answered:
        flags = []
        for n, text in enumerate(one.texts):
            key = same(text)
            is_long = len(key.split()) >= LONG or len(key) >= 5 * LONG
            count = len(owners[key])
            long += is_long
            flags.append(is_long and count > 1)
            if flags[-1]:
                scored.append((count, partial(show, one, n, ("prompts", count))))
        rows.append(flags)
        one.numbers["shared"] = sum(flags)
    if not long or len(answered) < 2:
        measure.says = f"No answer is long enough ({LONG} words), or there is one prompt only."
        return measure
    measure.interval = share_of(rows)
    assert measure.interval is not None
    measure.scale = Scale.below(SHARED)
    measure.says = f"Of all answers; {long:,} of {sum(map(len, rows)):,} are long ({LONG} words)."
    look, problem = SHARED
    measure.status = (
        "problem" if measure.interval.low > problem else "look" if measure.interval.value > look else "fine"
    )
    if measure.is_wrong:
        measure.remedy = "elsewhere"
        measure.todo = (
            "A model that says one text to many prompts has collapsed: go back to an earlier checkpoint, or to the "
            "model before it was tuned. Tuning it further rarely brings back what is gone."
        )
    measure.worst = worst_of(scored)
    return measure


def _consistency(config: DiagnoseConfig, answered: Sequence[Answered]) -> Measure:
    measure = Measure("self_consistency", "Numeric answers that agree", "spread")
    measure.normal = [
        Normal(f"above {percent(AGREE)}", "rule of thumb"),
        Normal("agreement goes with being right, and the most frequent answer is right more often than a single one "
               "(Wang et al. 2023, self-consistency)", "literature"),
    ]  # fmt: skip
    shares: list[list[float]] = []
    single: list[float] = []
    voted: list[float] = []
    scored = []
    for one in answered:
        truths = {last_number(text) for text in accepted_answers(one.drawn.example.columns.get(config.answer))} - {None}
        if not truths or len(one.texts) < 2:
            continue
        numbers = [last_number(text) for text in one.texts]
        counts = Counter(number for number in numbers if number is not None)
        best, count = counts.most_common(1)[0] if counts else (None, 0)
        share = count / len(numbers)
        one.numbers["agreeing"] = share
        shares.append([share])
        single.append(float(np.mean([number in truths for number in numbers])))
        voted.append(float(best in truths))
        scored.append((-share, lambda one=one, numbers=numbers: _numbers(one, numbers)))
    measure.interval = _clipped(over_prompts(shares))
    if measure.interval is None:
        measure.says = f"No prompt has a number in column `{config.answer}` and two answers."
        return measure
    right, vote = float(np.mean(single)), float(np.mean(voted))
    measure.more = {"right": right, "right_by_vote": vote, "prompts": len(shares)}
    measure.says = (
        f"Share of the most frequent last number. Of {len(shares):,} prompts with a number for an answer one answer is "
        f"right in {percent(right)}, the most frequent one in {percent(vote)}."
    )
    measure.scale = Scale(0.0, 1.0, [(AGREE, "look"), (1.0, "fine")])
    measure.status = "look" if measure.interval.value < AGREE else "fine"
    if measure.is_wrong:
        better = vote > right
        measure.remedy = "preference" if better else "elsewhere"
        measure.todo = (
            "The most frequent answer is better than a single one, so tuning on answers that a program checks (grpo) "
            "can sharpen what the model half knows."
            if better
            else "The model guesses, and its most frequent answer is no better: a more capable model, or SFT on worked "
            "solutions first."
        )
        measure.worst = worst_of(scored)
    return measure


def _numbers(one: Answered, numbers: Sequence[str | None]) -> Worst:
    said = ", ".join(number or "none" for number in numbers)
    return show(one, 0, ("numbers of all answers", said[:200]))


def _own(answered: Sequence[Answered], vocabulary: int) -> Measure:
    measure = Measure("own_logprob", "Mean log π per token of own answers", "spread", "nats")
    chance = -math.log(vocabulary)
    measure.normal = [
        Normal(f"guessing: {told(chance, 'number')} (−ln of {vocabulary:,} tokens); a single answer: 0", "this data"),
        Normal(f"look above {told(CERTAIN, 'number')} and below {told(GUESSES[0] * chance, 'number')}, a problem below "
               f"{told(GUESSES[1] * chance, 'number')}", "rule of thumb"),
    ]  # fmt: skip
    rows = [[one.logprob for one in each.likely if one is not None] for each in answered]
    entropies = [[one.entropy for one in each.likely if one is not None] for each in answered]
    measure.interval = over_prompts(rows)
    entropy = over_prompts(entropies)
    if measure.interval is None or entropy is None:
        measure.says = "No answer holds a token."
        return measure
    for each, row, other in zip(answered, rows, entropies, strict=True):
        if row:
            each.numbers |= {"own_logprob": float(np.mean(row)), "entropy": float(np.mean(other))}
    measure.more = {"entropy": entropy.to_json(), "chance": chance}
    measure.says = (
        f"Temperature 1, end token included. Entropy per token is {entropy.value:.2f} nats: of so many equally likely "
        f"tokens a choice would be as open: {math.exp(entropy.value):.1f}."
    )
    value = measure.interval.value
    zones: list[tuple[float, Status]] = [
        (GUESSES[1] * chance, "problem"), (GUESSES[0] * chance, "look"), (CERTAIN, "fine"), (0.0, "look"),
    ]  # fmt: skip
    measure.scale = Scale(chance, 0.0, zones)
    measure.status = "look" if value > CERTAIN or value < GUESSES[0] * chance else "fine"
    if value < GUESSES[1] * chance:
        measure.status = "problem"
    if value > CERTAIN:
        measure.remedy = "elsewhere"
        measure.todo = (
            "The model gives one answer and is certain of it, right or wrong. Methods that compare its own answers "
            "find none to compare: begin with SFT or dpo on answers from elsewhere, or with an earlier checkpoint."
        )
    elif measure.is_wrong:
        measure.remedy = "sft"
        measure.todo = "The model hardly knows this kind of text: SFT first, on as much of it as there is."
    scored = [
        (-likely.logprob, lambda each=each, n=n, likely=likely: show(each, n, _chip(likely)))
        for each in answered
        for n, likely in enumerate(each.likely)
        if likely is not None
    ]
    measure.worst = worst_of(scored)
    return measure


def _good(answered: Sequence[Answered]) -> Measure:
    measure = Measure("good_logprob", "Mean log π per token of the data's good answers", "spread", "nats")
    pairs = [
        (one, one.good.logprob, float(np.mean([own.logprob for own in one.likely if own is not None])))
        for one in answered
        if one.good is not None and any(one.likely)
    ]
    measure.interval = over_prompts([[good] for _, good, _ in pairs])
    gap = over_prompts([[own - good] for _, good, own in pairs])
    if measure.interval is None or gap is None:
        measure.says = "No row holds a good answer (completion, chosen, best of ranked ones) that fits."
        return measure
    for one, good, _ in pairs:
        one.numbers["good_logprob"] = good
    own = float(np.mean([value for _, _, value in pairs]))
    measure.normal = [
        Normal(f"own answers to the same prompts: {told(own, 'number')}", "this data"),
        Normal(f"look from {GAP[0]:g} nats below them, a problem from {GAP[1]:g}", "rule of thumb"),
    ]
    measure.scale = Scale(
        min(own - 1.5 * GAP[1], measure.interval.value), 0.0,
        [(own - GAP[1], "problem"), (own - GAP[0], "look"), (0.0, "fine")],
    )  # fmt: skip
    measure.more = {"gap": gap.to_json()}
    measure.says = f"Of {len(pairs):,} rows. They are {gap.value:.2f} nats a token less likely than own answers."
    low = gap.low if gap.is_bounded else gap.value
    measure.status = "problem" if low >= GAP[1] else "look" if gap.value >= GAP[0] else "fine"
    if measure.is_wrong:
        measure.remedy = "sft"
        measure.todo = (
            "SFT first: preference tuning moves probability among answers that the model gives anyway, and it hardly "
            "ever gives such ones. Then measure again."
        )
    measure.worst = worst_of([(own - good, partial(_beside_good, one, good)) for one, good, own in pairs])
    return measure


def _beside_good(one: Answered, logprob: float) -> Worst:
    facts = ("log π of the good one", f"{logprob:.2f}")
    return show(one, 0, facts, beside=("good answer of the data", one.good_text or ""))


def _chip(likely: Likely) -> tuple[str, object]:
    return "log π", f"{likely.logprob:.2f}"


def _clipped(interval: Interval | None) -> Interval | None:
    """Of a mean that lies in [0, 1]."""
    if interval is None or not interval.is_bounded:
        return interval
    return Interval(interval.value, max(0.0, interval.low), min(1.0, interval.high), interval.n)
