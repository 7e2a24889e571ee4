"""KTO's mismatched completions: the same prompts with completions of other prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from preftune.errors import DataError
from preftune.records import Completion, Group


def mismatched(groups: Sequence[Group]) -> list[Group]:
    """Each group's prompt with completions of *other* prompts, one for each of its own where that is possible.

    Groups of one prompt count as one. Their completions, prompt by prompt, are rotated forward by the largest number of
    completions that a prompt has: the smallest rotation that leaves none with its own prompt, and with one completion
    per prompt the shift by one that TRL makes. Where one prompt has more than half of the batch, the places that would
    get a completion of their own prompt stay empty.

    Args:
        groups: an optimizer batch, in order.

    Returns:
        As many groups, with the same prompts in the same order; some may be without completions.

    Raises:
        DataError: all completions of the batch belong to one prompt, so none can be mismatched.
    """
    by_prompt: dict[tuple[int, ...], list[tuple[int, Completion]]] = {}
    for index, group in enumerate(groups):
        if group.completions:
            by_prompt.setdefault(group.prompt.ids, []).extend((index, completion) for completion in group.completions)
    if len(by_prompt) < 2:
        raise DataError(
            f"{groups[0].prompt.where if groups else 'an empty batch'}: every completion of this batch belongs to one "
            "prompt, and KTO compares each with completions of other prompts; raise train.batch_size (at least 2), "
            "and check that the data has different prompts"
        )
    rows = [(prompt, index, completion) for prompt, places in by_prompt.items() for index, completion in places]
    shift = max(len(places) for places in by_prompt.values())
    out: list[list[Completion]] = [[] for _ in groups]
    for place, (prompt, index, _) in enumerate(rows):
        other, _, completion = rows[(place - shift) % len(rows)]
        if other != prompt:
            out[index].append(completion)
    return [replace(group, completions=tuple(some)) for group, some in zip(groups, out, strict=True)]
