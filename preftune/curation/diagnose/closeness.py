"""How close an answer is to its own context in an encoder, beside what chance gives: other prompts' contexts."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from preftune.curation.diagnose.answers import Answered
from preftune.curation.diagnose.config import DiagnoseConfig, EncoderConfig
from preftune.curation.diagnose.form import show
from preftune.curation.diagnose.measure import Measure, Normal, Scale, over_prompts, told, worst_of
from preftune.curation.embeddings import Builtin, Embedder, Floats
from preftune.intervals import Interval

SHUFFLES = 200
LOOK, PROBLEM = 0.7, 0.6
"""Areas below which a person should look, and below which (the whole interval) it is a problem."""
TELLS = 0.6
"""Area of the data's good answers from which the encoder can tell what belongs together here."""
FEW = 5
"""Prompts below which nothing is said."""
BLOCK = 1024


class Vectors:
    """Contexts, answers and good answers as vectors.

    Attributes:
        contexts: [P, d]; answers: [answers of all prompts, d] in order; good: [P, d], 0 where there is none.
        owners: [answers], each answer's prompt.
        cut: texts that were too long for the encoder, `limit` says for how much.
    """

    def __init__(
        self, config: EncoderConfig, answered: Sequence[Answered], seed: int, tell: Callable[[int, int], None]
    ) -> None:
        contexts = [one.drawn.context for one in answered]
        answers = [text for one in answered for text in one.texts]
        good = [one.good_text or "" for one in answered]
        self.owners = np.repeat(np.arange(len(answered)), [len(one.texts) for one in answered])
        embedder = make_embedder(config, seed)
        texts = [*dict.fromkeys(text for text in (*contexts, *answers, *good) if text.strip())] or ["text"]
        embedder.fit(texts, texts)
        parts: list[Floats] = []
        total, done = len(contexts) + len(answers) + len(good), 0
        for some in (contexts, answers, good):
            rows = [np.zeros((0, embedder.dimensions), np.float32)]
            for at in range(0, len(some), BLOCK):
                rows.append(embedder.embed(some[at : at + BLOCK]))
                done += len(rows[-1])
                tell(done, total)
            parts.append(np.concatenate(rows))
        self.contexts, self.answers, self.good = parts
        self.cut, self.limit = embedder.cut, embedder.limit


def make_embedder(config: EncoderConfig, seed: int) -> Embedder:
    """The encoder, loaded. Raises ModelError where it can't be."""
    if config.path is None:
        return Builtin(seed=seed)
    from preftune.curation.encoder import Encoder

    return Encoder(
        config.path, device=config.device, batch_size=config.batch_size, prefix=config.prefix,
        trust_remote_code=config.trust_remote_code,
    )  # fmt: skip


def areas(contexts: Floats, answers: Floats, owners: NDArray[np.int64]) -> NDArray[np.float64]:
    """Of each answer: the share of other prompts' contexts that it is less close to than to its own, ties one half.

    The area under the ROC curve of right against shuffled pairs, within an answer, so that answers that are close to
    everything do not blur it. Exact: every other context is compared.

    Args:
        contexts: [P, d]; answers: [n, d], of length 1; owners: [n]. P must be 2 at least.
    """
    out = np.empty(len(answers))
    for at in range(0, len(answers), BLOCK):
        similar = answers[at : at + BLOCK].astype(np.float64) @ contexts.T.astype(np.float64)
        mine = similar[np.arange(len(similar)), owners[at : at + BLOCK]][:, None]
        near = np.isclose(similar, mine, rtol=0, atol=1e-9)
        under = ((similar < mine) & ~near).sum(1)
        ties = near.sum(1) - 1  # its own
        out[at : at + BLOCK] = (under + 0.5 * ties) / (len(contexts) - 1)
    return out


def chance(contexts: Floats, middles: Floats, seed: int) -> tuple[float, float, float]:
    """Mean closeness under shuffled contexts, nobody keeping the own one: its mean, and the ends of the middle 95 %
    of `SHUFFLES` shuffles.

    Args:
        contexts: [P, d]; middles: [P, d], mean of each prompt's answers.
    """
    rng = np.random.default_rng(seed)
    means = []
    for _ in range(SHUFFLES):
        order = rng.permutation(len(contexts))
        other = np.roll(order, 1)  # one cycle through all: no context stays with its own answers
        means.append(float((middles[order] * contexts[other]).sum(1).mean()))
    low, high = np.quantile(means, (0.025, 0.975))
    return float(np.mean(means)), float(low), float(high)


def measure_closeness(config: DiagnoseConfig, answered: Sequence[Answered], vectors: Vectors) -> list[Measure]:
    """Closeness and its area against shuffled contexts, and `numbers` of every prompt filled."""
    what = "its prompt" if config.context is None else f"its `{config.context}`"
    close = Measure("closeness", f"Closeness of an answer to {what}", "closeness", "number")
    area = Measure("closeness_auc", "Own context against others' contexts", "closeness", "number")
    encoder = config.encoder.path or "the builtin encoder (shared words, no meaning)"
    filled = np.linalg.norm(vectors.answers, axis=1) > 0
    usable = np.linalg.norm(vectors.contexts, axis=1) > 0
    keep = filled & usable[vectors.owners]
    prompts = np.unique(vectors.owners[keep])
    if len(prompts) < FEW:
        close.says = area.says = f"Only {len(prompts)} prompts have a context and an answer; {FEW} are needed."
        return [close, area]
    place = np.full(len(answered), -1)
    place[prompts] = np.arange(len(prompts))
    owners, answers, contexts = place[vectors.owners[keep]], vectors.answers[keep], vectors.contexts[prompts]
    cosines = (answers * contexts[owners]).sum(1)
    found = areas(contexts, answers, owners)
    counts = np.bincount(owners, minlength=len(prompts))[:, None]
    middles = np.zeros_like(contexts)
    np.add.at(middles, owners, answers)
    mean, low, high = chance(contexts, (middles / counts).astype(np.float32), config.seed)
    close.interval = over_prompts([list(cosines[owners == p]) for p in range(len(prompts))])
    area.interval = _within(over_prompts([list(found[owners == p]) for p in range(len(prompts))]))
    assert close.interval is not None and area.interval is not None
    for p, prompt in enumerate(prompts):
        mine = owners == p
        answered[prompt].numbers |= {"closeness": float(cosines[mine].mean()), "area": float(found[mine].mean())}
    close.normal = [Normal(f"chance: {mean:.2f}, in 95 % of shuffles {low:.2f} to {high:.2f}", "this data")]
    area.normal = [
        Normal("chance: 0.50", "this data"),
        Normal(f"look below {LOOK:g}, a problem below {PROBLEM:g}", "rule of thumb"),
    ]
    close.more = {"chance": mean, "chance_low": low, "chance_high": high}
    close.says = f"Cosine in {encoder}."
    if vectors.cut:
        close.says += f" {vectors.cut:,} texts were longer than {vectors.limit} and were read so far only."
    area.says = "An answer is closer to its own context than to so many of the others'."
    able = _with_good(close, area, vectors, answered)
    value, top = area.interval.value, area.interval.high if area.interval.is_bounded else area.interval.value
    if not able:
        area.status = close.status = "unknown"
        area.says += " But this encoder can't tell: the data's own good answers are no closer to their contexts."
    else:
        area.scale = Scale(0.0, 1.0, [(PROBLEM, "problem"), (LOOK, "look"), (1.0, "fine")])
        close.scale = Scale(min(0.0, low), 1.0, [(high, "look"), (1.0, "fine")])
        area.status = "problem" if top < PROBLEM else "look" if value < LOOK else "fine"
        close.status = "fine" if close.interval.value > high else area.status if area.is_wrong else "look"
    for measure in (close, area):
        if measure.is_wrong:
            measure.remedy = "elsewhere"
            measure.todo = _TODO if config.encoder.path is not None else f"{_TODO} {_BUILTIN}"
    numbers = np.flatnonzero(keep)
    first = np.searchsorted(vectors.owners, np.arange(len(answered)))
    scored = [
        (
            -float(found[n]),
            lambda n=n, at=at: show(
                answered[vectors.owners[at]], int(at - first[vectors.owners[at]]), ("closeness", f"{cosines[n]:.2f}"),
                ("closer than", f"{100 * found[n]:.0f} % of others"),
                beside=None if config.context is None
                else (f"context ({config.context})", answered[vectors.owners[at]].drawn.context),
            ),
        )
        for n, at in enumerate(numbers)
    ]  # fmt: skip
    area.worst = worst_of(scored) if area.status != "unknown" else ()
    return [close, area]


_TODO = (
    "Not by preference tuning alone: answers that do not keep to their context need better retrieval, a template that "
    "shows the context (`form`), or a more capable model; SFT on good answers where there are some."
)
_BUILTIN = "Make sure with a model that reads meaning first: --encoder.path."


def _with_good(close: Measure, area: Measure, vectors: Vectors, answered: Sequence[Answered]) -> bool:
    """Add what the data's good answers have; whether the encoder can tell what belongs together."""
    rows = np.flatnonzero((np.linalg.norm(vectors.good, axis=1) > 0) & (np.linalg.norm(vectors.contexts, axis=1) > 0))
    if len(rows) < FEW:
        return True
    contexts, good = vectors.contexts[rows], vectors.good[rows]
    cosine = float((contexts * good).sum(1).mean())
    interval = over_prompts([[value] for value in areas(contexts, good, np.arange(len(rows)))])
    assert interval is not None
    close.normal = [*close.normal, Normal(f"the data's good answers: {cosine:.2f}", "this data")]
    area.normal = [*area.normal, Normal(f"the data's good answers: {told(interval.value, 'number')}", "this data")]
    close.more = {**close.more, "good": cosine}
    area.more = {"good": interval.to_json()}
    return interval.value >= TELLS


def _within(interval: Interval | None) -> Interval | None:
    if interval is None or not interval.is_bounded:
        return interval
    return Interval(interval.value, max(0.0, interval.low), min(1.0, interval.high), interval.n)
