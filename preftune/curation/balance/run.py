"""`balance`: three passes over the rows, with their vectors in a file between."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from preftune.curation.balance import texts as passes
from preftune.curation.balance.choose import Chosen, choose, effective
from preftune.curation.balance.clusters import Clusters, TooMany, cluster
from preftune.curation.balance.config import BalanceConfig
from preftune.curation.balance.even import even_sample
from preftune.curation.balance.page import balance_page
from preftune.curation.balance.story import Story, characteristic, tell
from preftune.curation.balance.sweep import ENOUGH, Silhouette, Sweep, sweep
from preftune.curation.embeddings import Builtin, Embedder
from preftune.curation.encoder import Encoder
from preftune.curation.folder import PARTIAL, Curated
from preftune.curation.vectors import VectorFile
from preftune.errors import DataError, UsageError
from preftune.train.progress import Progress

COMMAND = "preftune data balance"
CLUSTERS = "clusters.jsonl"
WEIGHT = "weight"
"""The column that `raise_by: weight` writes."""
ORDERS = 3
"""Orders in which all texts are clustered at most."""
OVER, BAD = "over the cap", "bad row"


@dataclass(frozen=True, slots=True)
class Balanced:
    """What `balance` did.

    Attributes:
        folder: rows.jsonl, decisions.jsonl, clusters.jsonl, summary.json, report.html.
        read: usable rows; `kept` and `dropped` add up to it.
        bad: rows that could not be read (`on_bad_row: skip`).
        written: lines of rows.jsonl; more than `kept` where rows are repeated.
        distinct: different texts.
        before, after: what each cluster counts, the largest first.
        threshold: BIRCH's.
        silhouette: of the sample's texts in these clusters; None with one cluster, or with none of two.
        sweep: how the threshold was chosen.
    """

    folder: Path
    read: int
    bad: int
    kept: int
    dropped: int
    written: int
    distinct: int
    before: tuple[int, ...]
    after: tuple[float, ...]
    threshold: float
    silhouette: float | None
    sweep: Sweep

    def __str__(self) -> str:
        capped = sum(b > a for b, a in zip(self.before, self.after, strict=True))
        raised = sum(b < a for b, a in zip(self.before, self.after, strict=True))
        return (
            f"{self.read:,} rows ({self.distinct:,} different texts) in {len(self.before):,} clusters at threshold "
            f"{self.threshold:g}; {capped:,} clusters capped, {raised:,} raised\n"
            f"{self.kept:,} rows kept, {self.dropped:,} over the cap; {self.written:,} lines written to {self.folder}\n"
            f"effective number of clusters: {effective(self.before):.1f} before, {effective(self.after):.1f} after"
        )


def balance(config: BalanceConfig, output: Path, *, base_dir: Path | None = None) -> Balanced:
    """Embed rows, cluster them by BIRCH, cap large clusters and raise small ones (METHODS.md 6).

    Memory holds some thirty bytes of each row, the sample, the cluster tree and a chunk of texts; vectors lie in a
    file in the output folder while the command runs. The same settings and rows give the same result.

    Args:
        config: what to balance and how.
        output: a new folder.
        base_dir: where relative data paths start.

    Raises:
        UsageError: the folder holds something, or the clusters are too many.
        DataError: the rows can't be read, lack what is asked for, or change meanwhile.
        ModelError: the embedder can't be loaded.
    """
    with Curated(output) as out, Progress("balance") as progress:
        embedder = _embedder(config)
        known = passes.read(config, base_dir, progress)
        progress.say(f"{known.rows:,} rows, {known.distinct:,} different texts")
        with VectorFile(output / f"vectors{PARTIAL}") as vectors:
            _embed(config, base_dir, known, embedder, vectors, progress)
            swept, found, silhouette = _clusters(config, known, vectors, progress)
            labels, centres = _by_size(_apart(found, known.blank), known.texts)
            progress.begin("choosing")
            chosen = choose(labels, known.texts, vectors, centres, config, known.prefer, progress.tick)
            story = tell(known, labels, chosen, vectors, config.seed)
        written = _write(config, base_dir, known, labels, chosen, out, story, progress)
        words = characteristic([*_sample(known, labels), *((one.cluster, one.text) for one in story.shown.values())])
        for number, (before, after) in enumerate(zip(chosen.before, chosen.after, strict=True)):
            named = {"words": words[number]} if number in words else {}
            out.write({"cluster": number + 1, "before": int(before), "after": _count(after), **named}, CLUSTERS)
        result = Balanced(
            output, known.rows, known.bad, out.counts["kept"], out.counts[OVER], written, known.distinct,
            tuple(int(size) for size in chosen.before), tuple(float(size) for size in chosen.after),
            swept.threshold, silhouette, swept,
        )  # fmt: skip
        shown = balance_page(result, config, known, embedder, story, words)
        out.finish(COMMAND, config.model_dump(mode="json"), _measures(result, known, embedder), shown)
    return result


def _embedder(config: BalanceConfig) -> Embedder:
    if config.is_builtin:
        return Builtin(config.dimensions, config.seed)
    return Encoder(
        config.embedder, device=config.device, batch_size=config.batch_size, prefix=config.prefix,
        trust_remote_code=config.trust_remote_code,
    )  # fmt: skip


def _embed(
    config: BalanceConfig, base_dir: Path | None, known: passes.Read, embedder: Embedder, vectors: VectorFile,
    progress: Progress,
) -> None:  # fmt: skip
    """All texts' vectors. Where what the embedding learnt from is not all of them, it is drawn anew, evenly over what
    the first sample showed, and an embedder that learns learns again."""
    _learn(config, base_dir, known, embedder, vectors, progress)
    if known.distinct <= config.sample:
        return
    progress.begin("thresholds of a first sample")
    fair = vectors[_numbers(known.tried)]
    options: dict[str, Any] = {"branching": config.branching, "seed": config.seed}
    threshold = sweep(fair, limit=len(fair), tell=progress.tick, **options).threshold
    learnt, tried = even_sample(vectors, fair, config.sample, threshold=threshold, **options)
    passes.gather(config, base_dir, known, learnt, tried)
    if config.is_builtin:
        _learn(config, base_dir, known, embedder, vectors, progress)


def _learn(
    config: BalanceConfig, base_dir: Path | None, known: passes.Read, embedder: Embedder, vectors: VectorFile,
    progress: Progress,
) -> None:  # fmt: skip
    embedder.fit([text for text, _ in known.learnt], [text for text, _ in known.tried])
    vectors.restart(embedder.dimensions)
    passes.embed(config, base_dir, known, embedder, vectors, progress)


def _numbers(texts: passes.Texts) -> NDArray[np.int64]:
    return np.array([number for _, number in texts], dtype=np.int64)


def _clusters(
    config: BalanceConfig, known: passes.Read, vectors: VectorFile, progress: Progress
) -> tuple[Sweep, Clusters, float | None]:
    """The sweep on the sample, and clusters of all texts at its threshold, or at the next that is coarse enough; and
    the silhouette of the sample's texts in them.

    Which clusters BIRCH finds depends on the order. Where those of all texts are clearly worse than the sample's were,
    further orders are tried, and the best one is taken.
    """
    progress.begin("thresholds")
    numbers = _numbers(known.tried)
    sample = vectors[numbers]
    options: dict[str, Any] = {"branching": config.branching, "limit": config.max_clusters}
    swept = sweep(sample, given=config.threshold, tell=progress.tick, seed=config.seed, **options)
    judge = Silhouette(sample, config.seed)
    best: tuple[float, Clusters, float | None] | None = None
    order = 0
    while order < ORDERS:
        progress.begin(f"clustering at {swept.threshold:g}")
        try:
            found = cluster(vectors, swept.threshold, seed=config.seed + order, tell=progress.tick, **options)
        except TooMany:
            swept, best, order = _coarser(config, known, swept, progress), None, 0
            continue
        mark = judge(found.labels[numbers])
        if best is None or (mark is not None and mark > best[0]):
            best = (-1.0 if mark is None else mark, found, mark)
        wanted = next((step.silhouette for step in swept.steps if step.threshold == swept.threshold), None)
        if wanted is None or best[0] >= wanted - (1 - ENOUGH) * abs(wanted):
            break
        order += 1
    assert best is not None
    return swept, best[1], best[2]


def _coarser(config: BalanceConfig, known: passes.Read, swept: Sweep, progress: Progress) -> Sweep:
    """The sweep with the next larger threshold. Raises UsageError where there is none to choose."""
    wider = None if config.threshold is not None else swept.above(swept.threshold)
    if wider is None:
        raise UsageError(
            f"threshold {swept.threshold:g} makes more than {config.max_clusters} clusters of {known.distinct} "
            "different texts; set a larger threshold, or a larger max_clusters, which takes memory and time"
        )
    progress.say(f"more than {config.max_clusters} clusters at {swept.threshold:g}; trying {wider:g}")
    why = f"the next after {swept.threshold:g}, which made more than {config.max_clusters:,} clusters of all"
    return Sweep(swept.steps, wider, why)


def _apart(found: Clusters, blank: int | None) -> Clusters:
    """The empty text in a cluster of its own: what it is near to means nothing."""
    if blank is None or (found.labels == found.labels[blank]).sum() == 1:
        return found
    labels = found.labels.copy()
    labels[blank] = len(found.centres)
    return Clusters(np.concatenate([found.centres, np.zeros_like(found.centres[:1])]), labels, found.distances)


def _by_size(found: Clusters, texts: NDArray[np.int32]) -> tuple[NDArray[np.int32], Any]:
    """Cluster of each row, and the centres, the cluster with most rows first; of two equal ones, the one seen first."""
    labels = found.labels[texts]
    sizes = np.bincount(labels, minlength=len(found.centres))
    _, first = np.unique(labels, return_index=True)
    order = np.lexsort((first, -sizes))
    place = np.empty(len(order), np.int32)
    place[order] = np.arange(len(order), dtype=np.int32)
    return place[labels], found.centres[order]


def _write(
    config: BalanceConfig, base_dir: Path | None, known: passes.Read, labels: NDArray[np.int32], chosen: Chosen,
    out: Curated, story: Story, progress: Progress,
) -> int:  # fmt: skip
    """The third pass: rows, as they were read, and a decision for each. Returns how many lines were written."""
    weighted = config.raise_by == "weight"
    written = 0
    progress.begin("writing")
    for row, one, text in passes.again(config, base_dir, known):
        if row < 0:
            out.decide(one.row.where, kept=False, why=BAD, problem=one.problem)
            continue
        if weighted and WEIGHT in one.row.values:
            raise DataError(
                f"{one.row.where}: has a column {WEIGHT!r} already, which raise_by: weight would write over; "
                "rename it, or set raise_by: copy"
            )
        copies, place = int(chosen.copies[row]), int(labels[row]) + 1
        if (shown := story.shown.get(row)) is not None:
            shown.where, shown.text, shown.copies = one.row.where, text, copies
        if not copies:
            out.decide(one.row.where, kept=False, why=OVER, cluster=place)
            continue
        weight = _count(chosen.weights[row])
        out.decide(one.row.where, kept=True, cluster=place, **({"weight": weight} if weighted else {"copies": copies}))
        for _ in range(copies):
            out.write({**one.row.values, WEIGHT: weight} if weighted else one.row.values)
        written += copies
        if row % passes.TICK == 0:
            progress.tick(row + 1, known.rows)
    progress.tick(known.rows, known.rows)
    return written


def _sample(known: passes.Read, labels: NDArray[np.int32]) -> list[tuple[int, str]]:
    """(cluster, text) of the sample."""
    cluster_of = np.zeros(known.distinct, np.int32)
    cluster_of[known.texts] = labels
    texts = {number: text for text, number in [*known.learnt, *known.tried]}
    return [(int(cluster_of[number]), text) for number, text in texts.items()]


def _count(value: float) -> float | int:
    return int(value) if float(value).is_integer() else float(value)


def _measures(result: Balanced, known: passes.Read, embedder: Embedder) -> dict[str, Any]:
    steps = [
        {"threshold": s.threshold, "clusters": s.clusters, "largest": s.largest, "alone": s.alone,
         "silhouette": s.silhouette, "stability": s.stability, "too_many": s.too_many}
        for s in result.sweep.steps
    ]  # fmt: skip
    before, after = result.before, result.after
    return {
        "read": result.read, "bad": result.bad, "written": result.written, "distinct": result.distinct,
        "duplicates": result.read - result.distinct, "empty": known.empty, "cut": known.cut,
        "cut_by_model": embedder.cut, "clusters": len(before),
        "capped": sum(b > a for b, a in zip(before, after, strict=True)),
        "raised": sum(b < a for b, a in zip(before, after, strict=True)),
        "largest_share": {"before": before[0] / sum(before), "after": max(after) / sum(after)},
        "effective_clusters": {"before": effective(before), "after": effective(after)},
        "silhouette": result.silhouette, "threshold": result.threshold, "threshold_why": result.sweep.why,
        "sweep": steps,
    }  # fmt: skip
