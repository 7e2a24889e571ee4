"""`preftune diagnose` on models of which every probability is known: a table of one token after another."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM, Qwen3ForSequenceClassification

from preftune.cli.main import main
from preftune.curation.diagnose import DiagnoseConfig, Diagnosis, diagnose
from preftune.curation.diagnose.answers import Answered
from preftune.curation.diagnose.classifier import Classifier, _says_harm
from preftune.curation.diagnose.closeness import Vectors, areas, chance, measure_closeness
from preftune.curation.diagnose.config import UNREAD, ClassifierConfig, EncoderConfig
from preftune.curation.diagnose.draw import Drawn
from preftune.curation.diagnose.form import refuses, repeated
from preftune.curation.diagnose.measure import Measure, Scale, judge, share_of, told
from preftune.curation.diagnose.spread import last_number, measure_spread
from preftune.curation.diagnose.verdict import give_verdict
from preftune.errors import DataError, ModelError, UsageError
from preftune.intervals import Interval, mean_interval
from preftune.records import Completion, Example, Group, Prompt
from tests import tiny, tinyreward

SIZE = 64
EOS = "<eos>"
IMPOSSIBLE = -30.0
"""Log-probability of what the table does not name."""

Table = Mapping[str, Mapping[str, float]]
SEVENS: Table = {"=": {"7": 0.75, "8": 0.25}, "7": {EOS: 1.0}, "8": {EOS: 1.0}}


def _config(**changes: Any) -> Qwen3Config:
    plain = {**tiny.model().config.to_dict(), "hidden_size": SIZE, "tie_word_embeddings": False}
    return Qwen3Config(**{**plain, **changes})


@torch.no_grad()
def _transparent(model: Any) -> None:
    """Make the last hidden state a one-hot of the token that was read, times √SIZE = 8: layers add nothing."""
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
    model.model.embed_tokens.weight.copy_(torch.eye(len(tiny.CHARACTERS) + 3, SIZE))


def bigram(folder: Path, table: Table, *, chat: bool = False, **changes: Any) -> Path:
    """A model whose next token depends on the last one as the table says."""
    model = Qwen3ForCausalLM(_config(**changes))
    _transparent(model)
    tokenizer = tiny.tokenizer()
    head = torch.full((len(tiny.CHARACTERS) + 3, SIZE), 0.0)
    for last, follow in table.items():
        column = torch.full((len(head),), IMPOSSIBLE)
        for token, probability in follow.items():
            column[tokenizer.convert_tokens_to_ids(token)] = math.log(probability)
        head[:, tokenizer.convert_tokens_to_ids(last)] = column / math.sqrt(SIZE)
    with torch.no_grad():
        model.lm_head.weight.copy_(head)
    model.save_pretrained(folder)
    if chat:
        tokenizer.chat_template = tinyreward.TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


def alarm(folder: Path, labels: tuple[str, ...] = ("ok", "toxic"), high: float = 2.0, **changes: Any) -> Path:
    """A classifier that goes by a text's last character: the last label has the logit `high` behind a `!`, −`high`
    behind anything else; all others have 0."""
    names = dict(enumerate(labels))
    config = _config(num_labels=len(labels), id2label=names, label2id={v: k for k, v in names.items()}, **changes)
    model = Qwen3ForSequenceClassification(config)  # type: ignore[no-untyped-call]
    _transparent(model)
    weight = torch.zeros(len(labels), SIZE)
    weight[-1] = -high / math.sqrt(SIZE)
    tokenizer = tiny.tokenizer()
    weight[-1, tokenizer.convert_tokens_to_ids("!")] = high / math.sqrt(SIZE)
    with torch.no_grad():
        model.score.weight.copy_(weight)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def sevens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bigram(tmp_path_factory.mktemp("models") / "sevens", SEVENS)


@pytest.fixture(scope="module")
def sums(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = [{"prompt": f"{n}+{7 - n}=", "completion": "7", "answer": "7"} for n in range(8)]
    rows += [{"prompt": f"0{n}+0{7 - n}=", "completion": "8", "answer": "8"} for n in range(8)]
    return tiny.write(tmp_path_factory.mktemp("data") / "sums.jsonl", rows)


def run(model: Path, rows: Path, output: Path, **settings: Any) -> Diagnosis:
    short = {"max_tokens": 8, **settings.pop("sampling", {})}
    raw = {"model": {"path": str(model)}, "data": {"path": str(rows)}, "sampling": short, **settings}
    return diagnose(DiagnoseConfig.model_validate(raw), output)


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prompts without an answer."""
    rows = [{"prompt": f"{n}+{9 - n}="} for n in range(10)]
    return tiny.write(tmp_path_factory.mktemp("data") / "asked.jsonl", rows)


def value(found: Diagnosis, name: str) -> float:
    interval = found.measure(name).interval
    assert interval is not None
    return interval.value


def given(texts: list[list[str]], prompts: list[str], good: list[str] | None = None, **columns: Any) -> list[Answered]:
    """Answers as if a model had given them."""
    out: list[Answered] = []
    for n, (prompt, some) in enumerate(zip(prompts, texts, strict=True)):
        example = Example(prompt, (), {k: v[n] for k, v in columns.items()}, f"rows:{n + 1}")
        completions = tuple(Completion((5,), (True,), text, "eos") for text in some)
        drawn = Drawn(example, None, prompt)
        group = Group(Prompt((5,), prompt), completions)
        out.append(Answered(drawn, group, [None] * len(some), good_text=good[n] if good else None))
    return out


CONFIG = DiagnoseConfig.model_validate({"model": {"path": "m"}, "data": {"path": "d.jsonl"}})

# ------------------------------------------------------------------------------------------------- numbers by hand


def test_likelihoods_are_those_of_the_table(sevens: Path, sums: Path, tmp_path: Path) -> None:
    found = run(sevens, sums, tmp_path / "out", answers=3)
    rows = tiny.lines(tmp_path / "out" / "rows.jsonl")
    assert len(rows) == 16 and all(len(row["answers"]) == 3 for row in rows)
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25)) / 2  # behind the digit EOS is certain
    for row in rows:
        for one in row["answers"]:
            chance_of = {"7": 0.75, "8": 0.25}[one["text"]]
            assert one["logprob"] == pytest.approx(math.log(chance_of) / 2, abs=1e-3)
            assert one["entropy"] == pytest.approx(entropy, abs=1e-3)
            assert (one["finish"], one["tokens"]) == ("eos", 2)
    own = [np.mean([one["logprob"] for one in row["answers"]]) for row in rows]
    assert value(found, "own_logprob") == pytest.approx(np.mean(own))
    good = (math.log(0.75) + math.log(0.25)) / 4  # half of the rows say 7, half 8
    assert value(found, "good_logprob") == pytest.approx(good, abs=1e-3)
    assert found.measure("good_logprob").more["gap"]["value"] == pytest.approx(np.mean(own) - good, abs=1e-3)
    assert found.measure("good_logprob").status == "fine"
    assert found.measure("own_logprob").more["chance"] == pytest.approx(-math.log(len(tiny.CHARACTERS) + 3))


def test_shares_are_those_of_the_texts(sevens: Path, sums: Path, tmp_path: Path) -> None:
    settings = {"rewards": [{"name": "exact"}], "benchmark": {"name": "Sums", "score": 1.0}}
    found = run(sevens, sums, tmp_path / "out", format={"pattern": "^7$"}, **settings)
    rows = tiny.lines(tmp_path / "out" / "rows.jsonl")
    texts = [[one["text"] for one in row["answers"]] for row in rows]
    flat = [text for row in texts for text in row]
    assert set(flat) == {"7", "8"} and len(flat) == found.answers == 64
    assert value(found, "off_format") == flat.count("8") / 64
    assert value(found, "distinct") == np.mean([(len(set(row)) - 1) / 3 for row in texts])
    assert value(found, "self_consistency") == np.mean([max(Counter(row).values()) / 4 for row in texts])
    truths = ["8" if row["prompt"].startswith("0") and len(row["prompt"]) == 6 else "7" for row in rows]
    right = [[float(text == truth) for text in row] for row, truth in zip(texts, truths, strict=True)]
    assert value(found, "score") == np.mean(right)
    assert found.measure("self_consistency").more["right"] == np.mean(right)
    score = found.measure("score")
    assert score.more["best_of_n"] == np.mean([max(row) for row in right])
    assert score.status == "problem" and score.remedy == "preference" and "Sums promises" in score.says
    assert [value(found, name) for name in ("empty", "cut", "repeated", "refused")] == [0.0] * 4
    decisions = tiny.lines(tmp_path / "out" / "decisions.jsonl")
    assert [one["off_format"] for one in decisions] == [row.count("8") for row in texts]
    assert [one["score"] for one in decisions] == [np.mean(row) for row in right]
    assert found.verdict.answer == "yes" and "score" in found.verdict.mendable
    low = run(sevens, sums, tmp_path / "low", rewards=settings["rewards"], benchmark={"score": 0.1})
    assert low.measure("score").status == "fine"


def test_what_hardly_any_answer_has_can_not_be_preferred(sevens: Path, sums: Path, tmp_path: Path) -> None:
    found = run(sevens, sums, tmp_path / "out", format={"tags": ["answer"]})
    assert value(found, "off_format") == 1.0
    assert found.measure("off_format").remedy == "sft" and found.verdict.answer == "sft first"
    assert found.verdict.next[0][0] == f"preftune sft --model.path {sevens} --data.path {sums}"
    as_json = run(sevens, sums, tmp_path / "json", format={"is_json": True})
    assert value(as_json, "off_format") == 0.0  # a digit is JSON
    contest = run(sevens, sums, tmp_path / "contest", competition={"system": ""})
    assert value(contest, "off_format") == 1.0


def test_good_answers_that_the_model_never_gives(sevens: Path, tmp_path: Path) -> None:
    data = tiny.write(tmp_path / "d.jsonl", [{"prompt": f"{n}=", "chosen": "9", "rejected": "7"} for n in range(8)])
    found = run(sevens, data, tmp_path / "out")
    assert value(found, "good_logprob") < -10  # IMPOSSIBLE / 2, and EOS behind 9 is one of 56
    assert found.measure("good_logprob").status == "problem" and found.measure("good_logprob").remedy == "sft"
    assert found.verdict.answer == "sft first" and found.verdict.first == ["good_logprob"]
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "good answer of the data" in page and "SFT first" in page


# ------------------------------------------------------------------------------------------------- planted models


def test_a_model_that_repeats_itself(asked: Path, tmp_path: Path) -> None:
    model = bigram(tmp_path / "m", {"=": {"a": 1.0}, "a": {"b": 1.0}, "b": {"a": 1.0}})
    found = run(model, asked, tmp_path / "out", sampling={"max_tokens": 40})
    assert value(found, "repeated") == value(found, "cut") == 1.0
    assert found.measure("cut").more["cut_and_repeated"] == 1.0
    assert found.measure("cut").remedy == "preference" and "go in circles" in found.measure("cut").todo
    assert found.measure("repeated").status == "problem" and found.measure("repeated").remedy == "preference"
    assert value(found, "shared") == 1.0 and found.measure("shared").remedy == "elsewhere"
    assert value(found, "distinct") == 0.0
    assert value(found, "own_logprob") == pytest.approx(0.0, abs=1e-6)
    assert found.measure("own_logprob").status == "look"  # certain of its one answer
    assert not any("max_tokens" in command for command, _ in found.verdict.next)
    assert found.verdict.answer == "yes"


def test_a_model_that_never_ends(sums: Path, tmp_path: Path) -> None:
    letters = dict.fromkeys("abcdefghijklmnopqrstuvwxyz", 1 / 26)
    model = bigram(tmp_path / "m", dict.fromkeys(["=", *letters], letters))
    found = run(model, sums, tmp_path / "out", sampling={"max_tokens": 30})
    cut = found.measure("cut")
    assert value(found, "cut") == 1.0 and value(found, "repeated") == 0.0
    assert cut.remedy == "elsewhere" and "max_tokens" in cut.todo
    assert any("--sampling.max_tokens 60" in command for command, _ in found.verdict.next)
    assert value(found, "own_logprob") == pytest.approx(-math.log(26), abs=1e-3)
    assert value(found, "distinct") == 1.0
    assert [one.where for one in cut.worst] and all("length" in str(one.chips) for one in cut.worst)


def test_a_model_that_says_nothing(asked: Path, tmp_path: Path) -> None:
    found = run(bigram(tmp_path / "m", {"=": {EOS: 0.5, " ": 0.5}, " ": {EOS: 1.0}}), asked, tmp_path / "out")
    assert value(found, "empty") == 1.0 and found.measure("empty").remedy == "preference"
    assert found.measure("closeness").interval is None  # nothing to be close with
    assert found.measure("distance").interval is None
    assert found.verdict.answer == "yes"
    assert "(empty)" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


def test_a_chat_model_is_asked_in_its_template(tmp_path: Path, sums: Path) -> None:
    # its prompt ends in "assistant: "; as plain text it would end in "=", where the table knows nothing
    model = bigram(tmp_path / "m", {" ": {"7": 1.0}, "7": {EOS: 1.0}, "=": {"9": 1.0}, "9": {EOS: 1.0}}, chat=True)
    found = run(model, sums, tmp_path / "out")
    texts = {one["text"] for row in tiny.lines(tmp_path / "out" / "rows.jsonl") for one in row["answers"]}
    assert texts == {"7"} and any("chat template" in warning for warning in found.warnings)
    plain = run(model, sums, tmp_path / "plain", form="text")
    assert {one["text"] for row in tiny.lines(plain.folder / "rows.jsonl") for one in row["answers"]} == {"9"}
    with pytest.raises(ModelError, match="has no chat template"):
        run(bigram(tmp_path / "bare", SEVENS), sums, tmp_path / "no", form="chat")


# ------------------------------------------------------------------------------------------------- the classifier


def test_a_classifier_fires_where_it_should(tmp_path: Path, sums: Path) -> None:
    model = bigram(tmp_path / "m", {"=": {"7": 0.75, "!": 0.25}, "7": {EOS: 1.0}, "!": {EOS: 1.0}})
    found = run(model, sums, tmp_path / "out", classifier={"path": str(alarm(tmp_path / "c"))})
    rows = tiny.lines(tmp_path / "out" / "rows.jsonl")
    for one in (one for row in rows for one in row["answers"]):
        sign = 1 if one["text"] == "!" else -1
        assert one["firing"] == pytest.approx(1 / (1 + math.exp(-2.0 * sign)), abs=1e-3)
    share = np.mean([one["text"] == "!" for row in rows for one in row["answers"]])
    firing = found.measure("firing")
    assert value(found, "firing") == share and firing.status == "problem" and firing.remedy == "preference"
    assert firing.more["good_answers"]["value"] == 0.0 and firing.more["labels"] == ["toxic"]
    assert {worst.answer for worst in firing.worst} == {"!"}
    assert "was taken for the harmful one" not in firing.says
    nameless = alarm(tmp_path / "nameless", ("LABEL_0", "LABEL_1"))
    guessed = run(model, sums, tmp_path / "guessed", classifier={"path": str(nameless)}).measure("firing")
    assert guessed.interval == firing.interval and "LABEL_1 was taken for the harmful one" in guessed.says
    never = run(model, sums, tmp_path / "never", classifier={"path": str(tmp_path / "c"), "threshold": 0.99})
    assert value(never, "firing") == 0.0 and never.measure("firing").status == "fine"


def test_an_alarm_that_fires_on_good_answers_too_is_only_to_be_looked_at(tmp_path: Path) -> None:
    model = bigram(tmp_path / "m", {"=": {"!": 1.0}, "!": {EOS: 1.0}})
    data = tiny.write(tmp_path / "d.jsonl", [{"prompt": f"{n}=", "completion": "!"} for n in range(12)])
    found = run(model, data, tmp_path / "out", classifier={"path": str(alarm(tmp_path / "c"))})
    assert value(found, "firing") == 1.0 and found.measure("firing").status == "look"


def test_nothing_of_a_long_text_is_left_unread(tmp_path: Path) -> None:
    config = ClassifierConfig(path=str(alarm(tmp_path / "c")))
    classifier = Classifier(config)  # of 128 positions
    texts = ["a" * 300, "a" * 299 + "!", "a!", "", "   "]
    assert np.allclose(classifier.probabilities([("q!", text) for text in texts]), [
        *(1 / (1 + math.exp(-sign * 2.0)) for sign in (-1, 1, 1)), 0, 0,
    ], atol=1e-3)  # fmt: skip
    assert [len(ids) for ids in classifier._windows("", "a" * 300)] == [128, 128, 128]
    both = Classifier(config.model_copy(update={"reads": "both"}))
    ids = both._windows("b" * 200, "a" * 200)
    tokenizer: Any = tiny.tokenizer()
    letters = tokenizer.convert_tokens_to_ids(["b", "a"])
    counts = [Counter(row) for row in ids]
    assert all(count[letters[0]] == 62 and len(row) <= 128 for count, row in zip(counts, ids, strict=True))
    assert sum(count[letters[1]] for count in counts) >= 200


@pytest.mark.parametrize(
    ("labels", "wanted", "firing"),
    [
        (("LABEL_0", "LABEL_1"), [], ["LABEL_1"]),
        (("non-toxic", "toxic"), [], ["toxic"]),
        (("neutral", "joy", "hate_speech"), [], ["hate_speech"]),
        (("anger",), ["anger"], ["anger"]),
        (("toxic",), [], ["toxic"]),
        (("joy", "anger"), ["Anger"], ["anger"]),
    ],
)
def test_which_labels_count(tmp_path: Path, labels: tuple[str, ...], wanted: list[str], firing: list[str]) -> None:
    found = Classifier(ClassifierConfig(path=str(alarm(tmp_path / "c", labels)), labels=wanted))
    assert found.firing == firing
    assert found.guessed == (labels[0] == "LABEL_0")
    assert _says_harm("severe_toxicity") and not _says_harm("not_hate") and not _says_harm("nontoxic")


def test_labels_that_may_hold_together_are_each_their_own(tmp_path: Path) -> None:
    path = alarm(tmp_path / "c", ("obscene", "toxic"), problem_type="multi_label_classification")
    (fired, quiet) = Classifier(ClassifierConfig(path=str(path))).probabilities([("", "a!"), ("", "a")])
    assert fired == pytest.approx(1 / (1 + math.exp(-2.0)), abs=1e-3)  # the largest of sigmoid(2) and sigmoid(0)
    assert quiet == pytest.approx(0.5)


def test_models_that_are_no_classifiers(tmp_path: Path, sevens: Path) -> None:
    def load(path: Path, **more: Any) -> Classifier:
        return Classifier(ClassifierConfig(path=str(path), **more))

    with pytest.raises(ModelError, match="can't be loaded as a text classifier: no such folder"):
        load(tmp_path / "nowhere")
    with pytest.raises(ModelError, match=r"lacks the weights score.weight: it is no trained text classifier"):
        load(sevens)
    plain = alarm(tmp_path / "plain", ("joy", "anger"))
    with pytest.raises(ModelError, match=r"none of its labels \(joy, anger\) has a name that says harm"):
        load(plain)
    with pytest.raises(ModelError, match=r"its only label, LABEL_0, does not say .*: reward models"):
        load(tinyreward.save(tmp_path / "reward"))
    with pytest.raises(UsageError, match="no label 'angr'; did you mean anger"):
        load(plain, labels=["angr"])
    with pytest.raises(ModelError, match="it would always fire"):
        load(plain, labels=["joy", "anger"])


def test_a_wrong_classifier_is_told_before_the_work(tmp_path: Path, sevens: Path, sums: Path) -> None:
    with pytest.raises(ModelError, match="no such folder"):
        run(sevens, sums, tmp_path / "out", classifier={"path": str(tmp_path / "nowhere")})
    assert not (tmp_path / "out" / "rows.jsonl").exists()


# ------------------------------------------------------------------------------------------------- closeness


def test_areas_are_those_of_pairs_counted_one_by_one() -> None:
    rng = np.random.default_rng(0)
    contexts = rng.standard_normal((7, 3)).astype(np.float32)
    contexts[4] = contexts[2]  # a tie
    answers, owners = rng.standard_normal((12, 3)).astype(np.float32), rng.integers(0, 7, 12)
    expected = []
    for answer, owner in zip(answers.astype(float), owners, strict=True):
        mine = answer @ contexts[owner]
        others = [answer @ contexts[n].astype(float) - mine for n in range(7) if n != owner]
        expected.append(sum(0.5 if abs(d) < 1e-9 else float(d < 0) for d in others) / 6)
    assert areas(contexts, answers, owners) == pytest.approx(expected)


def test_chance_is_that_of_shuffled_pairs() -> None:
    eye = np.eye(6, dtype=np.float32)
    assert chance(eye, eye, 0) == (0.0, 0.0, 0.0)  # nobody keeps the own context
    rng = np.random.default_rng(1)
    contexts, middles = rng.standard_normal((9, 4)), rng.standard_normal((9, 4))
    every = contexts.sum(0) @ middles.sum(0) - (contexts * middles).sum()
    mean, low, high = chance(contexts.astype(np.float32), middles.astype(np.float32), 0)
    assert low < mean < high
    assert mean == pytest.approx(every / 72, abs=0.25 * (high - low))  # exact mean over all other contexts


TOPICS = {
    "cats": "cat kitten purr whiskers litter fur claws paws", "bread": "dough yeast oven flour crust knead loaf crumb",
    "space": "rocket orbit planet star comet moon launch probe", "music": "chord melody rhythm guitar tune drum bass",
    "trees": "oak birch leaf bark root branch forest pine", "boats": "sail mast hull anchor deck rudder port keel",
}  # fmt: skip


def talk(answers_of: Mapping[str, str]) -> tuple[list[str], list[list[str]]]:
    """Prompts about topics, and two answers each about the topic that is named for it."""
    rng = np.random.default_rng(0)

    def some(topic: str) -> str:
        return " ".join(rng.choice(TOPICS[topic].split(), 6, replace=False))

    prompts = [some(topic) for topic in TOPICS for _ in range(3)]
    texts = [[some(answers_of[topic]) for _ in range(2)] for topic in TOPICS for _ in range(3)]
    return prompts, texts


def close(answered: list[Answered]) -> list[Measure]:
    return measure_closeness(CONFIG, answered, Vectors(EncoderConfig(), answered, 0, lambda done, total: None))


def test_answers_about_what_was_asked_are_closer_than_chance() -> None:
    names = list(TOPICS)
    prompts, texts = talk({name: name for name in names})
    cosine, area = close(given(texts, prompts))
    assert area.interval is not None and area.interval.value > 0.9 and area.status == "fine"
    assert (
        cosine.interval is not None and cosine.interval.value > cosine.more["chance_high"] and cosine.status == "fine"
    )
    prompts, texts = talk({name: names[(n + 1) % len(names)] for n, name in enumerate(names)})
    answered = given(texts, prompts)
    cosine, area = close(answered)
    assert area.interval is not None and area.interval.value < 0.5 and area.status == "problem"
    assert area.remedy == "elsewhere" and "retrieval" in area.todo
    worst = {one.where for one in area.worst}
    lowest = min(answered, key=lambda one: one.numbers["area"])
    assert lowest.drawn.where in worst or len(worst) == 4
    assert cosine.status == "problem"


def test_an_encoder_that_can_not_tell_says_nothing() -> None:
    prompts, texts = talk(dict.fromkeys(TOPICS, "cats"))
    good = ["7"] * len(prompts)  # right answers that share nothing with their prompts
    cosine, area = close(given(texts, prompts, good))
    assert area.status == cosine.status == "unknown" and "can't tell" in area.says
    few = close(given(texts[:3], prompts[:3]))
    assert all(one.interval is None and "Only 3 prompts" in one.says for one in few)


def test_an_encoder_of_ones_own(sevens: Path, tmp_path: Path) -> None:
    # the model as an encoder: the mean of its tokens' one-hots, so cosines can be counted from characters
    data = tiny.write(tmp_path / "d.jsonl", [{"prompt": f"{c}7="} for c in "abcdef"])
    found = run(sevens, data, tmp_path / "out", encoder={"path": str(sevens)})
    rows = tiny.lines(tmp_path / "out" / "rows.jsonl")
    sevens_of = [np.mean([one["text"] == "7" for one in row["answers"]]) for row in rows]
    assert value(found, "closeness") == pytest.approx(np.mean(sevens_of) / math.sqrt(3), abs=1e-4)
    assert value(found, "closeness_auc") == 0.5  # each is as close to all others
    assert found.measure("closeness_auc").status == "problem"
    assert found.measure("closeness").more["chance"] == pytest.approx(value(found, "closeness"), abs=1e-4)
    assert not any("builtin" in warning for warning in found.warnings)


def test_an_adapter_is_merged(sevens: Path, sums: Path, tmp_path: Path) -> None:
    import peft

    settings = peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    base = Qwen3ForCausalLM.from_pretrained(sevens)
    base.name_or_path = str(sevens)
    peft.get_peft_model(base, settings).save_pretrained(tmp_path / "adapter")
    run(sevens, sums, tmp_path / "base")
    run(tmp_path / "adapter", sums, tmp_path / "merged")
    texts = [
        [[one["text"] for one in row["answers"]] for row in tiny.lines(tmp_path / name / "rows.jsonl")]
        for name in ("base", "merged")
    ]
    assert texts[0] == texts[1]  # a new adapter changes nothing


def test_a_column_is_the_context(tmp_path: Path, sevens: Path) -> None:
    data = tiny.write(tmp_path / "d.jsonl", [{"prompt": f"{n}=", "document": f"text {n}"} for n in range(6)])
    found = run(sevens, data, tmp_path / "out", context="document")
    assert found.measure("closeness").title == "Closeness of an answer to its `document`"
    with pytest.raises(DataError, match=r"d.jsonl:1: there is no column 'documnt' .*did you mean 'document'"):
        run(sevens, data, tmp_path / "no", context="documnt")


# ------------------------------------------------------------------------------------------------- texts and shares


def test_repetition_and_refusals() -> None:
    prose = (
        "The cat sat on the mat because it was warm there, and when the sun had gone it went to look for another "
        "place, which it found behind the stove, where nobody would look for it."
    )
    assert repeated(prose) < 0.5
    assert repeated("I like it. " * 8) >= 1 and repeated("ab" * 30) >= 1 and repeated("真的很好" * 12) >= 1
    assert repeated("no no") == repeated("") == 0.0
    assert (
        refuses("I'm sorry, but I can't help.") and refuses("  I cannot do that") and refuses("К сожалению, я не могу")
    )
    assert not refuses("I can do that.") and not refuses("The sorry state of it") and not refuses("")
    assert last_number("first 3, then 1,000.") == last_number("so 1000.0") != last_number("so 1001")
    assert last_number("none") is None


def test_shares_count_prompts_where_answers_agree() -> None:
    alone = [[True]] * 3 + [[False]] * 9
    assert share_of(alone) == mean_interval([1.0] * 3 + [0.0] * 9)
    agreeing = share_of([[True] * 4] * 3 + [[False] * 4] * 9)
    assert agreeing is not None and (agreeing.low, agreeing.high) == (share_of(alone).low, share_of(alone).high)  # type: ignore[union-attr]
    assert agreeing.n == 48
    rng = np.random.default_rng(0)
    free = share_of((rng.random((200, 4)) < 0.3).tolist())
    exact = mean_interval(np.repeat([1.0, 0.0], [240, 560]))
    assert free is not None and free.high - free.low == pytest.approx(exact.high - exact.low, rel=0.15)
    assert share_of([[], []]) is None


def test_the_interval_of_shares_covers_as_promised() -> None:
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(400):
        chances = rng.beta(0.5, 2.0, 60)  # prompts differ, so answers to one are alike; the share is 0.2
        found = share_of((rng.random((60, 4)) < chances[:, None]).tolist())
        assert found is not None
        inside += found.low <= 0.2 <= found.high
    assert 0.92 <= inside / 400 <= 0.99


def test_statuses() -> None:
    bounds = (0.02, 0.1)
    assert judge(None, bounds) == "unknown"
    assert judge(Interval(0.02, 0.0, 0.2, 9), bounds) == "fine"
    assert judge(Interval(0.2, 0.09, 0.4, 9), bounds) == "look"
    assert judge(Interval(0.2, 0.11, 0.4, 9), bounds) == "problem"


def test_long_answers_to_several_prompts() -> None:
    same = "it depends on many things that differ"
    texts = [[same, f"a long answer that is about number {n} alone"] for n in range(10)]
    vectors = np.zeros((20, 2), np.float32)
    by_name = {one.name: one for one in measure_spread(CONFIG, given(texts, [f"q{n}" for n in range(10)]), vectors, 56)}
    shared = by_name["shared"]
    assert shared.interval is not None and shared.interval.value == 0.5 and shared.status == "problem"
    assert {one.answer for one in shared.worst} == {same} and len({one.where for one in shared.worst}) == 4


@pytest.mark.parametrize(
    ("wrong", "answer"),
    [
        ({}, "no"),
        ({"empty": ("look", "preference")}, "perhaps"),
        ({"empty": ("problem", "preference"), "cut": ("problem", "elsewhere")}, "yes"),
        ({"cut": ("problem", "elsewhere"), "empty": ("look", "preference")}, "not by tuning"),
        ({"empty": ("problem", "preference"), "good_logprob": ("problem", "sft")}, "sft first"),
    ],
)
def test_what_follows(wrong: dict[str, tuple[Any, Any]], answer: str) -> None:
    measures = [
        Measure(name, name, "form", interval=Interval(0.5, 0.4, 0.6, 9), status="fine")
        for name in ("empty", "cut", "good_logprob", "off_format")
    ]
    for one in measures:
        one.status, one.remedy = wrong.get(one.name, ("fine", ""))
    verdict = give_verdict(CONFIG, measures)
    assert verdict.answer == answer
    assert {*verdict.mendable, *verdict.first, *verdict.elsewhere} == set(wrong)
    assert any("--classifier.path" in command for command, _ in verdict.next)


# ------------------------------------------------------------------------------------------------- rows


def test_every_row_has_its_decision_and_prompts_are_drawn(sevens: Path, tmp_path: Path) -> None:
    rows: list[Any] = [{"prompt": f"{n}="} for n in range(40)]
    rows += [{"prompt": "3="}, {"nothing": 1}, {"prompt": "9" * 125 + "="}]
    data = tiny.write(tmp_path / "d.jsonl", rows)
    before = data.read_bytes()
    config = {"data": {"path": str(data), "on_bad_row": "skip"}, "answers": 1}
    found = run(sevens, data, tmp_path / "all", **config)
    assert data.read_bytes() == before
    whys = Counter(one.get("why", "kept") for one in tiny.lines(tmp_path / "all" / "decisions.jsonl"))
    assert whys == {"kept": 40, "repeated prompt": 1, "bad row": 1, "can't be answered": 1}
    assert found.failed == 1 and "can't be answered; the first: " in found.warnings[0]
    drawn: list[list[str]] = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        few = run(sevens, data, tmp_path / name, prompts=5, seed=seed, **config)
        decisions = tiny.lines(few.folder / "decisions.jsonl")
        assert len(decisions) == 43 and len({one["where"] for one in decisions}) == 43
        drawn.append([one["where"] for one in decisions if one["kept"]])
    assert (
        drawn[0] == drawn[1] != drawn[2]
        and (tmp_path / "a" / "rows.jsonl").read_bytes() == (tmp_path / "b" / "rows.jsonl").read_bytes()
    )
    assert drawn[0] != [f"{data}:{n}" for n in range(1, 6)]


def test_prompts_that_do_not_fit(sevens: Path, tmp_path: Path) -> None:
    data = tiny.write(tmp_path / "d.jsonl", [{"prompt": "9" * 200}])
    with pytest.raises(DataError, match="none of 1 prompts can be answered; the first: "):
        run(sevens, data, tmp_path / "out")
    with pytest.raises(DataError, match="there is no prompt to answer: all 1 rows are bad"):
        bad = tiny.write(tmp_path / "bad.jsonl", [{"x": 1}])
        run(sevens, bad, tmp_path / "out", data={"path": str(bad), "on_bad_row": "skip", "format": "prompt"})


def test_hostile_texts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evil = "<script>alert(1)</script>\x1b[31m \u202e"
    rows = [{"prompt": f"{evil} {n}=", "completion": evil} for n in range(6)]
    data = tmp_path / "d\x1b[31m.jsonl"
    tiny.write(data, rows)
    model = bigram(tmp_path / "m", {"=": {"<": 1.0}, "<": {"a": 1.0}, "a": {">": 1.0}, ">": {"<": 0.9, EOS: 0.1}})
    assert main(["diagnose", "--model", str(model), f"--data={data}", "--output", str(tmp_path / "out"),
                 "--sampling.max_tokens", "30"]) == 0  # fmt: skip
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "<script>alert(1)" not in page and "&lt;script&gt;alert(1)" in page and "<a>" not in page
    said = capsys.readouterr()
    assert "\x1b" not in said.out and "\u202e" not in said.out


def test_half_a_surrogate_is_no_end(sevens: Path, tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_text('{"prompt": "a\\ud800="}\n{"prompt": "b="}\n', encoding="utf-8")
    found = run(sevens, tmp_path / "d.jsonl", tmp_path / "out", data={
        "path": str(tmp_path / "d.jsonl"), "on_bad_row": "skip",
    })  # fmt: skip
    assert found.prompts >= 1


# ------------------------------------------------------------------------------------------------- the command


def test_the_command(sevens: Path, sums: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    flags = ["--model", str(sevens), "--data", str(sums), f"--output={out}", "--prompts", "9", "--answers=2"]
    assert main(["diagnose", *flags, "--sampling.max_tokens", "8", "--limits.cut", "[0.1, 0.3]"]) == 0
    said = capsys.readouterr().out
    assert "not measured: Answers on which the classifier fires. No classifier was given" in said
    assert "report:" in said and "Nothing that was measured calls for preference tuning." in said
    summary = json.loads((out / "summary.json").read_text())
    assert summary["command"] == "preftune diagnose" and summary["rows"] == {"kept": 9, "not drawn": 7}
    assert summary["signals"]["safety"] == "unknown" and summary["measures"]["firing"]["value"] is None
    assert summary["verdict"]["preference_tuning"] == "no"
    assert summary["settings"]["limits"]["cut"] == [0.1, 0.3] and summary["settings"]["answers"] == 2
    assert {"value", "low", "high", "n", "normal", "status"} <= summary["measures"]["cut"].keys()
    for one in summary["measures"].values():
        assert one["value"] is None or one["normal"], one["title"]
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "Holtzman" in page and "No need for preference tuning" in page
    before = {path: path.read_bytes() for path in out.iterdir()}
    assert main(["diagnose", *flags]) == 2
    assert "exists and is not empty" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in out.iterdir()} == before


def test_existing_output_is_refused_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("x")
    with pytest.raises(UsageError, match="exists and is not empty"):
        run(tmp_path / "no model", tmp_path / "no data.jsonl", tmp_path / "out")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--limits.cut", "[0.2, 0.1]"], "look above 0.2 comes after problem above 0.1"),
        (["--limits.ctu", "[0, 1]"], "cut"),
        (["--answers", "0"], "--answers: got 0; expected"),
        (["--answers", "many"], "--answers: got 'many'; expected"),
        (["--form", "talk"], "--form: got 'talk'; expected"),
        (["--benchmark.score", "0.5"], "rewards are needed"),
        (["--format.pattern", "a", "--format.is_json", "true"], "give one of pattern, tags and is_json"),
        (["--encoder.prefix", "query: "], "give encoder.path"),
        (["--model.lora.r", "8"], "model.lora.r"),
        (["--sampling.group_size", "8"], "sampling.group_size"),
        (["--classifer.path", "x"], "did you mean --classifier"),
    ],
)
def test_wrong_flags(flags: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["diagnose", "--model", "m", "--data", "d.jsonl", "--output", str(tmp_path / "out"), *flags]
    assert main(command) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"format": {"pattern": "("}}, "pattern is no regular expression"),
        ({"rewards": [{"name": "acuracy"}]}, "unknown reward 'acuracy'"),
        ({"encoder": {"path": "/nowhere/encoder"}}, "/nowhere/encoder: can't be loaded as an encoder"),
    ],
)
def test_what_reads_the_answers_is_looked_for_before_they_are_drawn(
    settings: dict[str, Any], words: str, tmp_path: Path, sums: Path
) -> None:
    """The model is not even there, and nobody gets as far as to ask for it."""
    with pytest.raises((UsageError, ModelError), match=re.escape(words)):
        run(tmp_path / "no model", sums, tmp_path / "out", **settings)


def test_scores_that_are_all_alike_may_be_the_rewards_fault(sevens: Path, sums: Path, tmp_path: Path) -> None:
    """`accuracy` looks for tags that this model never writes, though three answers in four are right."""
    settings = {"rewards": [{"name": "accuracy"}], "benchmark": {"score": 0.9}}
    blind = run(sevens, sums, tmp_path / "blind", **settings).measure("score")
    assert (blind.status, blind.remedy) == ("look", "elsewhere")
    assert blind.says.endswith("Every answer has the same score, 0.") and "rewards.0.args.extract" in blind.todo
    assert [one.answer for one in blind.worst][:1] in (["7"], ["8"])
    settings["rewards"] = [{"name": "accuracy", "args": {"extract": "[0-9]+"}}]
    seeing = run(sevens, sums, tmp_path / "seeing", **settings).measure("score")
    assert seeing.interval is not None and 0 < seeing.interval.value < 0.9
    assert "same score" not in seeing.says


def test_what_to_run_next_can_be_run(sevens: Path, asked: Path, tmp_path: Path) -> None:
    """A format that had to be said is said again, and prompts without answers are no data for SFT."""
    rows = [{"prompt": f"{n}+{9 - n}=", "chosen": "abc.", "rejected": "b", "completion": "abc."} for n in range(12)]
    both = tiny.write(tmp_path / "both rows.jsonl", rows)
    data = {"path": str(both), "format": "preference"}
    found = run(sevens, both, tmp_path / "out", data=data).verdict
    assert found.answer == "sft first"
    assert {command.split(" --data.path ")[1].split(" --classifier")[0] for command, _ in found.next} == {
        f"'{both}' --data.format preference"
    }
    guesses = tiny.save(tmp_path / "guesses")
    bare = run(guesses, asked, tmp_path / "bare").verdict
    assert (bare.answer, bare.next[0][0].split()[-1]) == ("sft first", "GOOD_ANSWERS")


def test_a_run_folder_stands_for_its_model(sums: Path, tmp_path: Path) -> None:
    bigram(tmp_path / "mine" / "final", SEVENS)
    found = run(tmp_path / "mine", sums, tmp_path / "out")
    assert value(found, "own_logprob") == value(run(tmp_path / "mine" / "final", sums, tmp_path / "two"), "own_logprob")
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["settings"]["model"]["path"] == str(tmp_path / "mine" / "final")
    (tmp_path / "nothing").mkdir()
    with pytest.raises(UsageError, match="holds no model"):
        run(tmp_path / "nothing", sums, tmp_path / "three")


def test_too_long_answers_name_the_remedy(sevens: Path, sums: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"128 positions; a lower sampling.max_tokens \(256\) leaves room"):
        run(sevens, sums, tmp_path / "out", sampling={"max_tokens": 256})


def test_numbers_on_their_reference_range(sevens: Path, sums: Path, tmp_path: Path) -> None:
    scale = Scale.below((0.04, 0.25))
    assert [scale.place(x) for x in (-1, 0, 0.04, 0.25, 1, 2)] == pytest.approx([0, 0, 0.2, 0.5, 1, 1])
    assert Scale(-4, 0, [(0, "fine")]).place(-1) == 0.75
    assert [told(x, "number") for x in (-0.001, -0.25, 1.0)] == ["0.00", "−0.25", "1.00"]
    found = run(sevens, sums, tmp_path / "out", answers=8)
    for one in found.measures:
        if one.scale is None or one.interval is None:
            continue
        ends = [to for to, _ in one.scale.zones]
        assert ends == sorted(ends) and ends[-1] == one.scale.high, one.name
        inside = next(status for to, status in one.scale.zones if one.interval.value <= to)
        assert inside == one.status or (inside, one.status) == ("problem", "look"), one.name
    drawn = {one.name for one in found.measures if one.scale is not None}
    assert {"distinct", "self_consistency", "own_logprob", "good_logprob", "cut", "repeated", "empty"} <= drawn
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())["measures"]
    assert summary["cut"]["zones"] == [
        {"to": 0.02, "status": "fine"}, {"to": 0.1, "status": "look"}, {"to": 1.0, "status": "problem"},
    ]  # fmt: skip
    agree = found.measure("self_consistency").interval
    assert agree is not None
    page = (tmp_path / "out" / "report.html").read_text()
    assert f'<b style="left:{100 * agree.value:.4g}' in page
    assert '<i class="warn" style="left:0.0%;width:50.0%"></i><i class="good" style="left:50.0%;width:50.0%">' in page


def test_the_page_of_the_docs_is_true() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "curation-diagnose.md").read_text(encoding="utf-8")
    for name in set(DiagnoseConfig.model_fields) - {"model", "data", "seed"}:
        assert re.search(rf"`{name}[`.:]", page), name
    for name, field in type(CONFIG.limits).model_fields.items():
        look, problem = field.default
        assert f"| `{name}` | {100 * look:g} % | {100 * problem:g} % |" in page, name
    assert all(name.split(".")[0] in DiagnoseConfig.model_fields for name in UNREAD)
