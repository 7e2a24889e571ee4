"""Which completions a report shows: chosen by rules that the page states, never by how good they look."""

from __future__ import annotations

from dataclasses import dataclass

from preftune.report.read import Run, Sample

STEPS = 4
PROMPTS = 4
WORSE = 2
GROUPS = 3


@dataclass(frozen=True, slots=True)
class Shown:
    """One prompt and the completions to set side by side: the same prompt at several steps, or one group."""

    split: str
    where: str
    prompt: str
    samples: tuple[Sample, ...]
    note: str = ""

    @property
    def answer(self) -> str:
        """The true answer that the row came with; empty when it has none."""
        return next((sample.answer for sample in self.samples if sample.answer), "")


def over_time(run: Run) -> list[Shown]:
    """Prompts outside training that were answered at several steps.

    The first PROMPTS in file order, then up to WORSE whose score fell from first to last; at most STEPS steps of
    each, evenly spread, the first, the last and the best step among them. One completion per step, the first.
    """
    by_prompt: dict[tuple[str, str, str], dict[int, Sample]] = {}
    for sample in run.samples:
        if sample.split != "train":
            by_prompt.setdefault((sample.split, sample.where, sample.prompt), {}).setdefault(sample.step, sample)
    repeated = [steps for steps in by_prompt.values() if len(steps) > 1]
    # Rows seen at most steps tell most; sorted() is stable, so file order holds among equals.
    repeated.sort(key=lambda steps: -len(steps))
    chosen = [_shown(steps, run.best_step) for steps in repeated[:PROMPTS]]
    worse = [_shown(steps, run.best_step, "its score fell") for steps in repeated[PROMPTS:] if _fell(steps)]
    return chosen + worse[:WORSE]


def in_training(run: Run) -> list[Shown]:
    """Groups from training: the first prompt written at the first, middle and last step that has samples."""
    by_step: dict[int, list[Sample]] = {}
    for sample in run.samples:
        if sample.split == "train":
            by_step.setdefault(sample.step, []).append(sample)
    out = []
    for step in _spread(sorted(by_step), GROUPS, None):
        first = by_step[step][0]
        group = [s for s in by_step[step] if (s.where, s.prompt) == (first.where, first.prompt)]
        shown = group[:STEPS]
        note = f"step {step}, {len(shown)} of {len(group)} completions" if len(group) > STEPS else f"step {step}"
        out.append(Shown("train", first.where, first.prompt, tuple(shown), note))
    return out


def _fell(steps: dict[int, Sample]) -> bool:
    first, last = steps[min(steps)].score, steps[max(steps)].score
    return first is not None and last is not None and last < first


def _shown(steps: dict[int, Sample], best: int | None, note: str = "") -> Shown:
    chosen = [steps[step] for step in _spread(sorted(steps), STEPS, best)]
    return Shown(chosen[0].split, chosen[0].where, chosen[0].prompt, tuple(chosen), note)


def _spread(steps: list[int], count: int, keep: int | None) -> list[int]:
    """At most `count` of `steps`, evenly spread, with the first and last, and `keep` in place of its neighbour."""
    if len(steps) <= count:
        return steps
    picked = [steps[round(i * (len(steps) - 1) / (count - 1))] for i in range(count)]
    if keep in steps and keep not in picked:
        inner = min(range(1, count - 1), key=lambda i: abs(picked[i] - keep))
        picked[inner] = keep
    return sorted(picked)
