"""What a competition came to, in plain words: whom the judge prefers, if the winner is right, if the form holds."""

from __future__ import annotations

from preftune.intervals import Interval
from preftune.report.competition import Found, Numbers, Tally
from preftune.report.competition_measures import Measure, contest_measures, persona_measures
from preftune.report.notes import finite
from preftune.report.usage import drawn
from preftune.report.words import NBSP, moved, number, section, signed, span

ROWS = {"test": "held-out", "validation": "validation", "train": "logged training"}
TWICE = 1.95
"""A ratio from which on a share is told as so many times chance."""


def how_drawn(numbers: Numbers) -> str:
    """Held-out answers and those of training are not drawn alike, which a reader of both must know."""
    if numbers.table.split == "train":
        return ""
    held_out, _ = drawn(numbers.run)
    training = finite(section(numbers.run, "sampling").get("temperature"))
    if training is None or training == held_out:
        return ""
    how = "are greedy" if held_out == 0.0 else f"are drawn at temperature {number(held_out)}"
    return f"Answers outside training {how}, those of training batches are drawn at temperature {number(training)}."


def sentences(first: Numbers, last: Numbers) -> list[str]:
    """At most three sentences, the judge's first.

    Args:
        first, last: the same run, or a pipeline's first and last stage.
    """
    split = last.table.split
    before, after = first.at(split), last.at(split)
    if after.ends[1] is None:
        return _untrained(after)
    measures = contest_measures()
    said = [_judge(before, after)]
    right = [_change(before, after, measures[key], name) for key, name in RIGHTS.items()]
    right = [text for text in right if text]
    if right:
        said.append("; ".join(right) + ".")
    form = _change(before, after, measures["strict"], "The form is without a fault")
    if form:
        said.append(form + ".")
    return [text for text in said if text]


RIGHTS = {"right": "The winner's own conclusion is right", "answer": "the final answer is right"}


def _untrained(tally: Tally) -> list[str]:
    if tally.ends[0] is None:
        return ["No contest was measured or logged, so there is nothing to say of one."]
    return ["Contests were measured before training alone, so nothing can be compared yet."]


def _judge(before: Tally, after: Tally) -> str:
    """Whom the judge prefers, against chance."""
    names = after.construct.names
    won = persona_measures(names)["won"]
    found = {name: after.find(won[name], after.ends[1]) for name in names}
    known = {name: one for name, one in found.items() if one is not None}
    rows = ROWS[after.split]
    if len(known) < len(names):
        return f"No {rows} contest names a winner, so there is nothing to say of the judge's taste."
    count = next(iter(known.values())).interval.n
    contests = f"{count:,}{NBSP}{rows} {'contest that names' if count == 1 else 'contests that name'} a winner"
    chance = 1 / len(names)
    by_chance = f"by chance ({number(chance, percent=True)})"
    above = [name for name, one in known.items() if one.interval.low > chance]
    below = [name for name, one in known.items() if one.interval.high < chance]
    if not above and not below:
        told = ", ".join(f"the {name} {_percent(one.interval)}" for name, one in known.items())
        return f"In {contests} no persona wins measurably more or less often than {by_chance}: {told}."
    who = max(above or below, key=lambda name: abs(known[name].interval.value - chance))
    ratio = known[who].interval.value / chance
    often = f"{number(ratio, digits=2)} times as" if ratio >= TWICE else "more" if ratio > 1 else "less"
    said = f"In {contests} the judge chose the {who} in {_percent(known[who].interval, bounds=True)}, {often} often "
    said += f"{'as' if ratio >= TWICE else 'than'} {by_chance}"
    said += f"{_once(before, who)}."
    for where, some in (("Above", above), ("Below", below)):
        rest = [f"the {name} ({_percent(known[name].interval)})" for name in some if name != who]
        said += f" {where} chance{' too' if who in some else ''}: {' and '.join(rest)}." if rest else ""
    return said


def _once(before: Tally, who: str) -> str:
    """How often it was chosen before training, and who was chosen instead where that was no chance either."""
    won = persona_measures(before.construct.names)["won"]
    found = {name: before.find(one, before.ends[0]) for name, one in won.items()}
    known = {name: one.interval for name, one in found.items() if one is not None}
    if who not in known:
        return ""
    said = f"; before training in {_percent(known[who])}"
    most = max(known, key=lambda name: known[name].value)
    if most != who and known[most].low > 1 / len(won):
        said += f", and the {most} in {_percent(known[most])}"
    return said


def _percent(interval: Interval, *, bounds: bool = False) -> str:
    said = number(interval.value, percent=True)
    return f"{said} (95{NBSP}% interval {span(interval, percent=True)})" if bounds and interval.is_bounded else said


def _change(before: Tally, after: Tally, measure: Measure, name: str) -> str:
    """`The form is without a fault in 93.5 % (…) of …, before training in 12.0 % (+81.5 points, …)`."""
    new, old = after.find(measure, after.ends[1]), before.find(measure, before.ends[0])
    if new is None:
        return ""
    said = f"{name} in {_percent(new.interval, bounds=True)}{_of(new, after)}"
    if old is None:
        return said
    said += f", before training in {_percent(old.interval)}"
    change = after.change(measure, old, new) if before is after else None
    if change is None:
        return said
    points = f"{signed(change.value * 100, '.1f')}{NBSP}points"
    if moved(change) is False:
        return f"{said}: no measurable change ({points})"
    return f"{said} ({points})"


def _of(found: Found, tally: Tally) -> str:
    """Of what, where that is not all rows."""
    if not found.logged:
        return ""
    return (
        f" of the {found.interval.n:,}{NBSP}logged {'answers' if tally.split == 'train' else tally.split + ' answers'}"
    )
