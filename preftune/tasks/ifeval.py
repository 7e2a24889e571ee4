"""IFEval's rows: `instruction_id_list` and `kwargs` as constraints of ours.

Zhou et al. 2023, "Instruction-Following Evaluation for Large Language Models" (arXiv 2311.07911), table 3, and the
argument names of its data (google/IFEval on the hub). All 25 instructions are known. Two are decided by other means
than there: the language, without a trained classifier (languages.py), and the number of sentences (counting.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from preftune.tasks.constraints import Constraint, _near, make_constraint

Arguments: TypeAlias = Mapping[str, Any]
Made: TypeAlias = tuple[str, dict[str, Any]]


def _bounds(args: Arguments, number: str, relation: str = "relation") -> dict[str, Any]:
    """`at least N` or `less than N` as inclusive bounds."""
    count, told = _number(args, number), _text(args, relation)
    if told == "at least":
        return {"at_least": count}
    if told == "less than":
        return {"at_most": count - 1}
    raise ValueError(f"{relation} is {told!r}; it is 'at least' or 'less than'")


def _exactly(args: Arguments, number: str) -> dict[str, Any]:
    count = _number(args, number)
    return {"at_least": count, "at_most": count}


def _number(args: Arguments, name: str) -> int:
    value = args.get(name)
    if isinstance(value, float) and value.is_integer():  # a column with gaps comes back as floats
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"{name} must be a whole number, it is {value!r}")
    return value


def _text(args: Arguments, name: str) -> str:
    value = args.get(name)
    if not isinstance(value, str):
        raise ValueError(f"{name} must be text, it is {value!r}")
    return value


def _texts(args: Arguments, name: str) -> list[str]:
    value = args.get(name)
    if not isinstance(value, list | tuple) or not all(isinstance(one, str) for one in value):
        raise ValueError(f"{name} must be a list of texts, it is {value!r}")
    return list(value)


ANSWERS = ("My answer is yes.", "My answer is no.", "My answer is maybe.")

INSTRUCTIONS: dict[str, Callable[[Arguments], Made]] = {
    "keywords:existence": lambda a: ("contains", {"words": _texts(a, "keywords"), "whole": False}),
    "keywords:frequency": lambda a: (
        "keyword", {"word": _text(a, "keyword"), "whole": False, **_bounds(a, "frequency")},
    ),
    "keywords:forbidden_words": lambda a: ("excludes", {"words": _texts(a, "forbidden_words")}),
    "keywords:letter_frequency": lambda a: (
        "letter", {"letter": _text(a, "letter"), **_bounds(a, "let_frequency", "let_relation")},
    ),
    "language:response_language": lambda a: ("language", {"language": _text(a, "language")}),
    "length_constraints:number_sentences": lambda a: ("sentences", _bounds(a, "num_sentences")),
    "length_constraints:number_paragraphs": lambda a: (
        "paragraphs", {"separator": "***", **_exactly(a, "num_paragraphs")},
    ),
    "length_constraints:number_words": lambda a: ("words", _bounds(a, "num_words")),
    "length_constraints:nth_paragraph_first_word": lambda a: (
        "paragraph-start",
        {
            "paragraph": _number(a, "nth_paragraph"), "word": _text(a, "first_word"),
            "paragraphs": _number(a, "num_paragraphs"),
        },
    ),
    "detectable_content:number_placeholders": lambda a: (
        "placeholders", {"at_least": _number(a, "num_placeholders")},
    ),
    "detectable_content:postscript": lambda a: ("postscript", {"marker": _text(a, "postscript_marker")}),
    "detectable_format:number_bullet_lists": lambda a: ("bullets", _exactly(a, "num_bullets")),
    "detectable_format:constrained_response": lambda a: ("one-of", {"answers": list(ANSWERS)}),
    "detectable_format:number_highlighted_sections": lambda a: (
        "highlights", {"at_least": _number(a, "num_highlights")},
    ),
    "detectable_format:multiple_sections": lambda a: (
        "sections", {"marker": _text(a, "section_spliter"), "at_least": _number(a, "num_sections")},
    ),
    "detectable_format:json_format": lambda a: ("json", {}),
    "detectable_format:title": lambda a: ("title", {}),
    "combination:two_responses": lambda a: ("two-responses", {}),
    "combination:repeat_prompt": lambda a: ("repeats-prompt", {"prompt": _text(a, "prompt_to_repeat")}),
    "startend:end_checker": lambda a: ("ends-with", {"text": _text(a, "end_phrase")}),
    "startend:quotation": lambda a: ("quoted", {}),
    "change_case:capital_word_frequency": lambda a: (
        "capital-words", _bounds(a, "capital_frequency", "capital_relation"),
    ),
    "change_case:english_capital": lambda a: ("uppercase", {"language": "en"}),
    "change_case:english_lowercase": lambda a: ("lowercase", {"language": "en"}),
    "punctuation:no_comma": lambda a: ("no-commas", {}),
}  # fmt: skip
"""IFEval's id → the constraint of ours that checks it."""


class UnknownInstruction(ValueError):
    """An id that is not in the table."""


def from_ifeval(identity: Any, args: Any) -> Constraint:
    """One instruction of IFEval as a constraint.

    Args:
        identity: an entry of `instruction_id_list`.
        args: the entry of `kwargs` beside it; values that are None are left out.

    Raises:
        UnknownInstruction: an id that is not in the table. ValueError: arguments that do not fit it.
    """
    if not isinstance(identity, str) or identity not in INSTRUCTIONS:
        raise UnknownInstruction(f"no instruction of IFEval is named {identity!r}{_near(str(identity), INSTRUCTIONS)}")
    if args is None:
        args = {}
    if not isinstance(args, Mapping):
        raise ValueError(f"kwargs of {identity} must be an object, it is {args!r}")
    try:
        kind, made = INSTRUCTIONS[identity]({name: value for name, value in args.items() if value is not None})
        return make_constraint(kind, made)
    except UnknownInstruction:
        raise
    except ValueError as error:
        raise ValueError(f"{identity}: {error}") from None
