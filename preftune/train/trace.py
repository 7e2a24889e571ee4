"""The winner's trace: of a contest inside one completion, the winner's working and the answer, as a plain answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from preftune.competition import Construct, parse
from preftune.records import Completion, Content, Example, Group, Message
from preftune.tokens import TokenContract

BETWEEN = "\n\n"
"""What stands between the working and the answer."""


def winners_trace(text: str, construct: Construct) -> tuple[str, str] | None:
    """The winner's name and its trace. None where the text is no contest that names one winner with a working of its
    own and ends in an answer, free of tags."""
    contest = parse(text, construct)
    if contest.winner is None or contest.answer is None or contest.leaks:
        return None
    section = contest.sections.get(contest.winner)
    if section is None or not section.closed or not section.text.strip():
        return None
    return contest.winner, f"{section.text.strip()}{BETWEEN}{contest.answer}"


def without_system(prompt: Content, construct: Construct | None) -> Content:
    """The prompt without the contest's system message; one of the source's own stays."""
    if construct is None or isinstance(prompt, str) or len(prompt) < 2:
        return prompt
    told = Message("system", construct.system_prompt)
    return prompt[1:] if prompt[0] == told else prompt


def cut_traces(
    groups: Sequence[Group], construct: Construct, contract: TokenContract
) -> tuple[list[Group], dict[str, int], int]:
    """Each completion as its winner's trace behind the prompt without the contest's system message.

    Traces are tokenised as data is, and end in EOS exactly where the completion did. Score, breakdown and source stay;
    log-probs go, as nobody drew these tokens. A trace that two completions of a prompt share is kept once.

    Returns:
        Groups of what is left, the number of traces by winner, and how many completions were left out.
    """
    out: list[Group] = []
    won: dict[str, int] = dict.fromkeys(construct.names, 0)
    left = 0
    for group in groups:
        found = [(c, winners_trace(c.text, construct)) for c in group.completions]
        left += sum(trace is None for _, trace in found)
        texts: dict[str, tuple[Completion, str]] = {}
        for completion, trace in found:
            if trace is not None:
                texts.setdefault(trace[1], (completion, trace[0]))
        if not texts:
            continue
        prompt = without_system(group.prompt.content, construct)
        answers: list[Content] = [text if isinstance(prompt, str) else (Message("assistant", text),) for text in texts]
        made = contract.group(Example(prompt, tuple(answers), group.prompt.columns, group.prompt.where))
        completions = []
        for tokens, (origin, winner) in zip(made.completions, texts.values(), strict=True):
            won[winner] += 1
            completions.append(_as_written(tokens, origin, winner, contract))
        out.append(replace(made, completions=tuple(completions)))
    return out, won, left


def _as_written(tokens: Completion, origin: Completion, winner: str, contract: TokenContract) -> Completion:
    ids, mask = tokens.ids, tokens.mask
    if ids[-1] in contract.eos_ids and (not origin.ids or origin.ids[-1] not in contract.eos_ids):
        ids, mask = ids[:-1], mask[:-1]  # it was cut, or ended at a stop string: no end is invented
    return replace(
        tokens, ids=ids, mask=mask, finish=origin.finish, source=origin.source, score=origin.score,
        breakdown=origin.breakdown, policy_version=origin.policy_version,
        notes={**origin.notes, "trace": "winner", "winner": winner},
    )  # fmt: skip
