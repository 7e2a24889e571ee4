"""`diagnose`: answers of the model to prompts of the data, and four signals of whether they need preference tuning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from preftune.competition.construct import Construct
from preftune.curation.contents import plain
from preftune.curation.diagnose.answers import Answered, Answerer
from preftune.curation.diagnose.classifier import Classifier
from preftune.curation.diagnose.closeness import Vectors, make_embedder, measure_closeness
from preftune.curation.diagnose.config import DiagnoseConfig
from preftune.curation.diagnose.draw import Drawn, draw_prompts
from preftune.curation.diagnose.form import form_reward, measure_form, repeated
from preftune.curation.diagnose.measure import Measure
from preftune.curation.diagnose.page import make_page
from preftune.curation.diagnose.spread import measure_spread
from preftune.curation.diagnose.use import measure_safety, measure_use, score_answers
from preftune.curation.diagnose.verdict import SIGNALS, Verdict, give_verdict, status_of
from preftune.curation.folder import Curated, check_free
from preftune.errors import DataError
from preftune.talk.place import find
from preftune.train.progress import Progress


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What `diagnose` found.

    Attributes:
        folder: rows.jsonl (prompts with answers), decisions.jsonl, summary.json and report.html.
        prompts, answers: how many were measured.
        measures: every number, in the order of the signals.
        verdict: what follows.
        failed: prompts that could not be answered.
        warnings: what a person should know about how it was measured.
    """

    folder: Path
    prompts: int
    answers: int
    measures: Sequence[Measure]
    verdict: Verdict
    failed: int
    warnings: Sequence[str]

    def measure(self, name: str) -> Measure:
        """One of the measures. Raises KeyError for a name that is none."""
        return {one.name: one for one in self.measures}[name]


def diagnose(config: DiagnoseConfig, output: Path, *, base_dir: Path | None = None) -> Diagnosis:
    """Measure a model on prompts, and say whether preference tuning can mend what is wrong.

    Prompts are drawn from the data at random; the model answers each several times. Memory holds the drawn prompts and
    their answers, and 16 bytes of every other prompt.

    Args:
        output: a new folder.
        base_dir: where relative data paths start.

    Raises:
        UsageError: `output` holds something; settings that do not fit. DataError: no prompt can be read, or none fits
            the model. ModelError: a model can't be loaded. RewardError: a reward failed.
    """
    check_free(output)
    # A run folder stands for what it trained; the page and the commands to go on with name what was loaded.
    model = config.model.model_copy(update={"path": find(config.model.path).path})
    config = config.model_copy(update={"model": model})
    with Curated(output) as curated, Progress("diagnose") as progress:
        progress.begin("settings")
        _check(config, base_dir)
        progress.begin("prompts")
        drawn = draw_prompts(config, curated, base_dir, progress.tick)
        progress.begin("answers")
        answerer = Answerer(config)
        answered, failed = answerer.answer(drawn, progress.tick)
        vocabulary, chat = answerer.vocabulary, answerer.is_chat
        answerer.close()
        for one, why in failed:
            curated.decide(one.where, kept=False, why="can't be answered", problem=why)
        if not answered:
            raise DataError(f"none of {len(drawn)} prompts can be answered; the first: {failed[0][1]}")
        progress.begin("rewards")
        score_answers(config, answered, base_dir)
        progress.begin("classifier")
        safety, fired = measure_safety(config, answered, progress.tick)
        progress.begin("encoder")
        vectors = Vectors(config.encoder, answered, config.seed, progress.tick)
        measures = [
            safety,
            *measure_spread(config, answered, vectors.answers, vocabulary),
            *measure_closeness(config, answered, vectors),
            *measure_form(config, answered, base_dir),
            measure_use(config, answered),
        ]
        verdict = give_verdict(config, measures)
        result = Diagnosis(
            output, len(answered), sum(len(one.texts) for one in answered), measures, verdict, len(failed),
            _warnings(config, drawn, answered, failed, chat=chat),
        )  # fmt: skip
        for place, each in enumerate(answered):
            curated.write(_row(each, fired[place] if fired else None))
            curated.decide(each.drawn.where, kept=True, **each.numbers)
        _finish(curated, config, result)
    return result


def _check(config: DiagnoseConfig, base_dir: Path | None) -> None:
    """Whether all that reads the answers can be had: what is wrong with it is said now, not when they are drawn.

    Raises as those do: ModelError, UsageError, RewardError.
    """
    if config.classifier is not None:
        Classifier(config.classifier)
    make_embedder(config.encoder, config.seed)
    form = form_reward(config)
    if config.rewards or form is not None:
        from preftune.rewards import build_rewards

        construct = None if config.competition is None else Construct.of(config.competition)
        with build_rewards(
            [*config.rewards, *([form] if form else [])], base_dir=base_dir or Path(), construct=construct
        ):
            pass


def _row(one: Answered, fired: Sequence[float] | None) -> dict[str, Any]:
    """A prompt with its answers and what is known of each."""
    answers: list[dict[str, Any]] = []
    for n, (completion, likely) in enumerate(zip(one.group.completions, one.likely, strict=True)):
        answers.append(
            {
                "text": completion.text, "finish": completion.finish, "tokens": len(completion.ids),
                "logprob": likely and likely.logprob, "entropy": likely and likely.entropy,
                "repeated": repeated(completion.text), "score": completion.score,
                **({"firing": fired[n]} if fired else {}),
            }
        )  # fmt: skip
    good = {} if one.good_text is None else {"good": one.good_text, "good_logprob": one.good and one.good.logprob}
    return {"where": one.drawn.where, "prompt": plain(one.drawn.example.prompt), "answers": answers, **good}


def _warnings(
    config: DiagnoseConfig, drawn: Sequence[Drawn], answered: Sequence[Answered], failed: Sequence[tuple[Drawn, str]],
    *, chat: bool,
) -> list[str]:  # fmt: skip
    out: list[str] = []
    if failed:
        out.append(f"{len(failed):,} of {len(drawn):,} prompts can't be answered; the first: {failed[0][1]}.")
    if len(answered) < 30:
        out.append(f"Only {len(answered):,} prompts were measured: intervals are wide, and little is certain.")
    lost = [one for one in answered if one.drawn.good is not None and one.good is None]
    if lost:
        out.append(f"Good answers of {len(lost):,} rows can't be measured; the first: {lost[0].why_not}.")
    if chat and any(isinstance(one.example.prompt, str) for one in drawn):
        out.append("Plain prompts were asked as a user's message in the model's chat template (`form`).")
    if config.encoder.path is None:
        out.append("Closeness and distances are those of the builtin encoder, which reads words and not meaning.")
    return out


def _finish(curated: Curated, config: DiagnoseConfig, result: Diagnosis) -> None:
    verdict = result.verdict
    measures = {
        "verdict": {
            "preference_tuning": verdict.answer, "sentence": verdict.sentence, "why": verdict.why,
            "mendable": verdict.mendable, "sft_first": verdict.first, "not_by_tuning": verdict.elsewhere,
            "next": [{"command": command, "for": what} for command, what in verdict.next],
        },
        "prompts": result.prompts, "answers": result.answers, "failed": result.failed,
        "signals": {signal: status_of(result.measures, signal) for signal in SIGNALS},
        "measures": {one.name: one.to_json() for one in result.measures},
        "warnings": result.warnings,
    }  # fmt: skip
    curated.finish(
        "preftune diagnose", config.model_dump(mode="json", by_alias=True), measures, make_page(config, result)
    )
