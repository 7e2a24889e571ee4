"""What is found by comparing a row with the rows before it. Only hashes are held, and shingles in a file."""

from __future__ import annotations

from collections.abc import Iterator

from preftune.curation.audit.config import AuditConfig
from preftune.curation.audit.row import Finding, Reading, better_pairs, side_name, words_of
from preftune.curation.audit.texts import Places, by_score, content_parts, digest, row_text
from preftune.curation.near import NearIndex, Shingled
from preftune.records import Example


class Seen:
    """The rows so far. A context manager: a file of shingles goes when it is left.

    A row that is equal to an earlier one is that alone: it repeats no prompt and no answer, and contradicts nothing
    that the earlier row does not. One that contradicts an earlier row is no near-duplicate. Rows are compared with
    those that are no near-duplicates, so that a thousand rows of one mould cost no million comparisons.

    Args:
        places: where each row stands, by its number.
    """

    def __init__(self, config: AuditConfig, places: Places) -> None:
        self._config, self._places = config, places
        self._rows: dict[int, int] = {}
        self._prompts: dict[int, int] = {}
        self._answers: dict[int, int] = {}
        self._preferred: dict[int, int] = {}
        self._marks: dict[int, int] = {}
        self._near = None if config.near.threshold is None else NearIndex(config.near, seed=1)

    def __enter__(self) -> Seen:
        return self

    def __exit__(self, *error: object) -> None:
        if self._near is not None:
            self._near.close()

    @property
    def distinct_prompts(self) -> int:
        return len(self._prompts)

    def look(self, reading: Reading, number: int) -> Iterator[Finding]:
        """Findings of the row with this number, which is then one of the rows so far."""
        example = reading.example
        row = digest(_canonical(example))
        if (first := self._rows.setdefault(row, number)) != number:
            yield Finding("duplicate_rows", "the same row", self._places[first], len(row_text(example)))
            return
        prompt = digest(content_parts(example.prompt))
        first = self._prompts.setdefault(prompt, number) if example.prompt else number
        if first != number:
            yield Finding("repeated_prompts", "the same prompt, another answer", self._places[first])
        yield from self._repeated_answers(reading, first)
        conflicts = list(self._conflicts(example, prompt, number))
        yield from conflicts or self._nearly(example, number)

    def _repeated_answers(self, reading: Reading, prompt: int) -> Iterator[Finding]:
        """`prompt`: number of the first row with the same prompt, which tells prompts apart."""
        found = None
        for place, completion in enumerate(reading.example.completions):
            said = len(words_of(reading.answer_tokens[place]))
            if said < self._config.short_answer:
                continue
            first = self._answers.setdefault(digest(content_parts(completion)), prompt)
            if first != prompt and found is None:
                note = f"{side_name(reading.example, place)}: the same answer to another prompt"
                found = Finding("repeated_answers", note, self._places[first], said)
        if found is not None:
            yield found

    def _conflicts(self, example: Example, prompt: int, number: int) -> Iterator[Finding]:
        found = None
        keys = [digest(content_parts(completion)) for completion in example.completions]
        for one, other in better_pairs(example):
            self._preferred.setdefault(hash((prompt, keys[one], keys[other])), number)
            against = self._preferred.get(hash((prompt, keys[other], keys[one])))
            if against is not None and keys[one] != keys[other] and found is None:
                note = "prefers an answer to itself through another" if against == number else "the other way round"
                found = Finding("conflicts", note, self._places[against] if against != number else "")
        if len(example.completions) == 1 and example.scores:
            good = example.scores[0] >= self._config.label_threshold
            first = self._marks.setdefault(hash((prompt, keys[0])), 2 * number + good)
            if first % 2 != good:
                found = Finding(
                    "conflicts", f"marked as {'good' if first % 2 else 'bad'} there", self._places[first // 2]
                )
        if found is not None:
            yield found

    def _nearly(self, example: Example, number: int) -> Iterator[Finding]:
        if self._near is None:
            return
        text = Shingled(row_text(example), self._config.near)
        if near := self._near.find(text):
            first = int(str(near[0].key))
            note = f"{100 * near[0].similarity:.0f} % the same"
            yield Finding("near_duplicates", note, self._places[first], near[0].similarity)
        else:
            self._near.add(number, text)


def _canonical(example: Example) -> Iterator[str]:
    """A row's content without its other columns; its answers in the order of their scores."""
    yield from content_parts(example.prompt)
    for place in by_score(example):
        yield "\x1d"
        yield str(example.scores[place]) if example.scores else ""
        yield from content_parts(example.completions[place])
