"""Numbers and samples that describe a batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import fmean, stdev
from typing import Any

from preftune.engine.pack import Pack
from preftune.records import Group
from preftune.rewards.collapse import distinct_n, longest_shared_substring, repetition

MAX_TRAIN_SAMPLES = 4
"""Completions of one training group that are written to samples.jsonl."""


def batch_metrics(groups: Sequence[Group], packs: Sequence[Pack], sampled: bool) -> dict[str, float]:
    """Metrics of a batch that need no model; defined one by one in docs/metrics.md."""
    out: dict[str, float] = {}
    completions = [c for g in groups for c in g.completions]
    lengths = [c.length for c in completions]
    fed = sum(p.tokens for p in packs)
    unshared = sum(p.unshared_tokens for p in packs)
    out["tokens/trained"] = float(sum(p.target_T.numel() for p in packs))
    out["tokens/packed"] = float(fed)
    out["tokens/saved"] = 1.0 - fed / unshared if unshared else 0.0
    out["length/mean"] = fmean(lengths) if lengths else 0.0
    out["length/max"] = float(max(lengths, default=0))
    if not sampled:
        return out
    out["length/chars"] = fmean([len(c.text) for c in completions])
    scores = [g.scores for g in groups]
    out["reward/mean"] = fmean([s for row in scores for s in row])
    out["reward/std"] = fmean([stdev(row) if len(row) > 1 else 0.0 for row in scores])
    out["reward/dead_groups"] = fmean([float(max(row) == min(row)) for row in scores])
    out["length/truncated"] = fmean([float(c.finish == "length") for c in completions])
    out["length/eos"] = fmean([float(c.finish == "eos") for c in completions])
    by_prompt = [[c.text for c in g.completions] for g in groups]
    out["diversity/distinct_2"] = distinct_n([texts[0] for texts in by_prompt], 2)
    out["diversity/shared_substring"] = float(longest_shared_substring(by_prompt))
    out["diversity/repetition"] = fmean([repetition(c.text) for c in completions])
    return out


def sample_records(groups: Sequence[Group], step: int, split: str) -> Iterator[dict[str, Any]]:
    """Lines of samples.jsonl."""
    for group in groups:
        for completion in group.completions[:MAX_TRAIN_SAMPLES]:
            yield {
                "step": step,
                "split": split,
                "where": group.prompt.where,
                "prompt": group.prompt.text,
                "completion": completion.text,
                "finish": completion.finish,
                "length": completion.length,
                "score": completion.score,
                "breakdown": dict(completion.breakdown),
                "columns": dict(group.prompt.columns),
                "notes": dict(completion.notes),
            }
