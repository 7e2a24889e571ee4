"""Whether answers follow their constraints: strictly and loosely, and the two shares that IFEval reports."""

from __future__ import annotations

from collections.abc import Sequence

from preftune.tasks.constraints import Constraint


def follows(text: str, constraints: Sequence[Constraint]) -> tuple[bool, ...]:
    """Which constraints a text follows, as it is. An empty text follows none."""
    return tuple(bool(text.strip()) and one.check(text) for one in constraints)


def follows_loosely(text: str, constraints: Sequence[Constraint]) -> tuple[bool, ...]:
    """Which constraints one of the text's loose forms follows: without asterisks (markdown), without its first line
    ("Sure, here it is:"), without its last, without both, and any of these without asterisks.

    References:
        Zhou et al. (2023), section 2.3: an instruction is followed loosely when one of the eight forms follows it.
    """
    forms = _forms(text)
    return tuple(any(form.strip() and one.check(form) for form in forms) for one in constraints)


def _forms(text: str) -> list[str]:
    lines = text.split("\n")
    cut = [text, "\n".join(lines[1:]).strip(), "\n".join(lines[:-1]).strip(), "\n".join(lines[1:-1]).strip()]
    return list(dict.fromkeys([*cut, *(form.replace("*", "") for form in cut)]))


def instruction_level(followed: Sequence[Sequence[bool]]) -> list[float]:
    """One value per row whose mean is the instruction-level share, Σ followed / Σ constraints.

    With f of a row's n constraints followed, p the share over all rows and n̄ the mean number of constraints, the
    value is p + (f − p·n) / n̄: where every row has as many it is the row's own f / n. Rows are independent and the
    constraints of one row are not, so the spread of these values is what an interval of the share is made from (the
    linearised ratio estimator; Cochran, "Sampling Techniques", section 6.3), also of a paired difference.
    """
    total = sum(len(row) for row in followed)
    if not total:
        return []
    share = sum(map(sum, followed)) / total
    mean = total / len(followed)
    if all(len(row) == len(followed[0]) for row in followed):
        return [sum(row) / len(row) for row in followed]
    return [share + (sum(row) - share * len(row)) / mean for row in followed]
