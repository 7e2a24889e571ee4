"""Rows that stay on disk from one start to the next: when they serve, when they do not, and that no number changes."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from preftune.config import Recipe
from preftune.data import sources
from preftune.errors import DataError, PreftuneError
from preftune.methods import method_of
from preftune.records import Example, Message
from preftune.tokens import TokenContract
from preftune.train import prepared, rows_key, workers
from preftune.train.folder import check_same_recipe
from preftune.train.loop import run
from preftune.train.progress import Progress
from preftune.train.rows_key import draft_key
from preftune.train.session import Session
from preftune.train.stored import StoredGroups
from tests import tiny
from tests.test_tokens import contract as make_contract
from tests.train.conftest import merged

Make = Callable[..., Recipe]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache's folder, in use from the first row on."""
    monkeypatch.setenv("PREFTUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(prepared, "STORED_FROM", 1)
    return tmp_path / "cache" / "rows"


@pytest.fixture
def recipe(home: Path, tmp_path: Path) -> Make:
    """Makes a recipe on preferences with held-out rows."""
    rows = [
        {
            "prompt": row["prompt"],
            "chosen": row["completion"],
            "rejected": f"{n % 9}?",
            "id": n,
            "more": {"a": [n, None]},
        }
        for n, row in enumerate(tiny.sums(35))
    ]
    tiny.write(tmp_path / "pairs.jsonl", rows[:28])
    tiny.write(tmp_path / "held.jsonl", rows[28:])

    def make(method: str = "dpo", **changes: Any) -> Recipe:
        base = {
            "method": method, "name": method, "model": {"path": str(home / "model")}, "log": {"sinks": []},
            "data": [{"path": str(tmp_path / "pairs.jsonl")}],
            "eval": {"test": [{"path": str(tmp_path / "held.jsonl")}]},
            "train": {"steps": 6, "batch_size": 4, "learning_rate": 3e-3, "checkpoint_every": 2},
        }  # fmt: skip
        return Recipe.model_validate(merged(base, changes))

    return make


def opened(recipe: Recipe) -> Session:
    return Session.open(recipe, functions=(), base_dir=None, progress=Progress("test"))


def noted(session: Session, words: str) -> bool:
    return any(words in note for note in session.notes)


def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Gets the name of each file that is read from now on."""
    seen: list[str] = []
    plain = sources._read_jsonl

    def counted(path: Path) -> Any:
        seen.append(path.name)
        return plain(path)

    monkeypatch.setitem(sources._READERS, ".jsonl", counted)
    return seen


def in_memory(make: Make, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> Session:
    with monkeypatch.context() as patch:
        patch.setattr(prepared, "STORED_FROM", 10**9)
        patch.setenv("PREFTUNE_CACHE", "/nowhere")
        return opened(make(**changes))


SPLITS = ("train", "validation", "test")


@pytest.mark.parametrize("method", ["dpo", "sft", "kto", "reward"])
def test_stored_rows_are_those_of_memory(recipe: Make, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    changes = {"method": method, "eval": {"holdout": 5}}
    plain = in_memory(recipe, monkeypatch, **changes)
    assert isinstance(plain.train, list)
    for again in range(2):
        session = opened(recipe(**changes))
        assert isinstance(session.train, StoredGroups)
        assert noted(session, "as an earlier run tokenised them") == bool(again)
        assert noted(session, "are kept in") != bool(again)
        for split in SPLITS:
            assert repr(list(getattr(session, split))) == repr(list(getattr(plain, split)))
        for name in ("counts", "data_facts", "budget", "steps", "data_metrics"):
            assert getattr(session, name) == getattr(plain, name), name
        assert session.fingerprints() == plain.fingerprints()
        assert [note for note in session.notes if "row" not in note] == [n for n in plain.notes if "row" not in n]


def test_the_second_start_reads_no_data(recipe: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = reads(monkeypatch)
    opened(recipe())
    assert seen == ["pairs.jsonl", "held.jsonl"]
    monkeypatch.setattr(TokenContract, "tokenise", None)
    session = opened(recipe(train={"learning_rate": 1e-5}, loss={"beta": 0.3}, name="other"))
    assert seen == ["pairs.jsonl", "held.jsonl"]
    assert len(session.train) == 28 and len(session.test) == 7


def test_few_rows_and_a_recipe_that_says_no_stay_in_memory(
    recipe: Make, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(opened(recipe(tokens={"cache": False})).train, list)
    monkeypatch.setattr(prepared, "STORED_FROM", 29)
    assert isinstance(opened(recipe()).train, list)
    assert not cache.exists()
    monkeypatch.setattr(prepared, "STORED_FROM", 28)
    assert isinstance(opened(recipe()).train, StoredGroups)
    assert isinstance(opened(recipe(tokens={"cache": False})).train, list)


# --------------------------------------------------------------------------------------------- what a hit depends on


@pytest.mark.parametrize(
    ("method", "changes"),
    [
        ("dpo", {"seed": 1}), ("dpo", {"eval": {"holdout": 3}}), ("dpo", {"eval": {"limit": 2}}),
        ("dpo", {"tokens": {"max_prompt_tokens": 5}}), ("dpo", {"tokens": {"drop_above_percentile": 50}}),
        ("dpo", {"tokens": {"max_completion_tokens": 9}}), ("dpo", {"tokens": {"loss_on": "last"}}),
        ("dpo", {"method": "sft"}), ("sft", {"loss": {"label_threshold": 0.7}}),
        ("sft", {"sampling": {"max_tokens": 7}}),
        ("rft", {"collect": {"trace": "winner"}, "competition": {}}),
    ],
    ids=str,
)  # fmt: skip
def test_what_rows_depend_on_makes_another_key(recipe: Make, method: str, changes: dict[str, Any]) -> None:
    one, other = recipe(method), recipe(**{"method": method, **changes})
    keys = [draft_key(made, method_of(made), None)[0] for made in (one, other, recipe(method))]
    assert keys[0] and keys[0] != keys[1] and keys[0] == keys[2]


def test_other_rows_are_read_and_kept_beside(recipe: Make, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = reads(monkeypatch)
    opened(recipe())
    session = opened(recipe(tokens={"max_prompt_tokens": 4}, seed=1))
    assert len(seen) == 4 and len(list(cache.iterdir())) == 2 and len(session.train) == 28


def test_other_weights_with_the_same_tokenizer_have_the_same_rows(
    recipe: Make, home: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = reads(monkeypatch)
    opened(recipe())
    opened(recipe(model={"path": str(home / "wide")}))
    assert len(seen) == 2 and len(list(cache.iterdir())) == 1


@pytest.mark.parametrize("how", ["content", "same size", "same size and date"])
def test_another_file_makes_other_rows(recipe: Make, tmp_path: Path, how: str) -> None:
    path = tmp_path / "pairs.jsonl"
    opened(recipe())
    stat, text = path.stat(), path.read_text()
    new = (
        text + text.splitlines()[0] + "\n" if how == "content" else text.replace('"rejected": "1?"', '"rejected": "8?"')
    )
    (tmp_path / "new").write_text(new)
    os.replace(tmp_path / "new", path)
    if "date" in how:
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    session = opened(recipe())
    assert not noted(session, "as an earlier run tokenised them")
    assert len(session.train) == len(new.splitlines())
    assert {c.text for group in session.train for c in group.completions} >= ({"8?"} if "same" in how else {"1?"})


def test_another_tokenizer_makes_other_rows(recipe: Make, home: Path, tmp_path: Path) -> None:
    shutil.copytree(home / "model", tmp_path / "model")
    path = tmp_path / "model" / "tokenizer.json"
    changes = {"model": {"path": str(tmp_path / "model")}}
    opened(recipe())
    assert noted(opened(recipe(**changes)), "as an earlier run tokenised them")
    text = path.read_text()
    path.write_text(text.replace('"a": 3', '"a": 4').replace('"b": 4', '"b": 3'))
    assert path.read_text() != text
    assert not noted(opened(recipe(**changes)), "as an earlier run tokenised them")


@pytest.mark.parametrize("whose", ["the model's", "the recipe's"])
def test_another_template_makes_other_rows(recipe: Make, home: Path, tmp_path: Path, whose: str) -> None:
    shutil.copytree(home / "model", tmp_path / "model")
    path = tmp_path / "model" / "chat_template.jinja"
    changes: dict[str, Any] = {"model": {"path": str(tmp_path / "model")}}
    if whose == "the recipe's":
        changes["tokens"] = {"chat_template": str(path)}
    for text in ("{{ messages[0].content }}", "{{ messages[0].content }}!"):
        path.write_text(text)
        assert not noted(opened(recipe(**changes)), "as an earlier run tokenised them")
        assert noted(opened(recipe(**changes)), "as an earlier run tokenised them")


def test_another_context_length_makes_other_rows(recipe: Make, tmp_path: Path) -> None:
    for room in (128, 8):
        tiny.save(tmp_path / "model", max_position_embeddings=room)
        session = opened(
            recipe(model={"path": str(tmp_path / "model")}, tokens={"on_too_long": "truncate-prompt-left"})
        )
        assert not noted(session, "as an earlier run tokenised them")


def test_a_template_that_writes_the_date_is_never_kept(recipe: Make, cache: Path) -> None:
    session = opened(recipe(tokens={"chat_template": "{{ strftime_now('%d') }}{{ messages[0].content }}"}))
    assert isinstance(session.train, list) and noted(session, "not on disk: the chat template writes the date")
    assert not cache.exists()


def test_other_code_makes_other_rows(recipe: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    opened(recipe())
    monkeypatch.setattr(rows_key, "_code", lambda: "other")
    assert not noted(opened(recipe()), "as an earlier run tokenised them")


def test_the_key_holds_what_the_code_reads() -> None:
    root = Path(rows_key.__file__).parent
    text = "".join((root / name).read_text() for name in ("rows.py", "trace.py"))
    read = set(re.findall(r"recipe\.(\w+)\.(\w+)", text))
    assert {("eval", "holdout"), ("collect", "trace"), ("loss", "label_threshold"), ("sampling", "max_tokens")} <= read
    for section, field in read:
        assert section not in rows_key.ELSEWHERE, section
        assert section not in rows_key.PARTS or field in rows_key.PARTS[section], (section, field)
    assert set(re.findall(r"recipe\.(\w+)", text)).isdisjoint(rows_key.ELSEWHERE)
    for name in rows_key.SOURCES:
        assert (root.parent / name).exists(), name
    assert set(rows_key.ELSEWHERE) | set(rows_key.PARTS) <= set(Recipe.model_fields)


@pytest.mark.parametrize("what", ["a folder", "a pipe", "nothing", "contest"])
def test_other_sources_are_not_kept(recipe: Make, tmp_path: Path, what: str) -> None:
    path = tmp_path / "source.jsonl"
    if what == "a folder":
        path.mkdir()
    elif what == "a pipe":
        os.mkfifo(path)
    elif what == "contest":
        tiny.write(path, tiny.sums(3))
    source: dict[str, Any] = {"path": str(path)}
    if what == "contest":
        source["contest"] = {"size": 2}
    made = recipe(data=[source], **({"method": "grpo"} if what == "contest" else {}))
    key, why = draft_key(made, method_of(made), None)
    assert not key and str(path) in why


def test_a_missing_file_is_still_named_before_the_model(recipe: Make, tmp_path: Path) -> None:
    opened(recipe())
    (tmp_path / "pairs.jsonl").rename(tmp_path / "pair.jsonl")
    with pytest.raises(DataError, match=r"did you mean pair\.jsonl"):
        opened(recipe(model={"path": str(tmp_path / "no model")}))


# --------------------------------------------------------------------------------------------- trouble


def harm_meta(folder: Path) -> None:
    (folder / "meta.json").write_text("{}")


def harm_meta_a_little(folder: Path) -> None:
    path = folder / "meta.json"
    text = path.read_text()
    path.write_text(text.replace('\\"highest\\": ', '\\"highest\\": 1', 1))
    assert path.read_text() != text


def cut(folder: Path) -> None:
    path = folder / "train.ids"
    path.write_bytes(path.read_bytes()[:-4])


def lose(folder: Path) -> None:
    (folder / "train.rows").unlink()


@pytest.mark.parametrize("harm", [harm_meta, harm_meta_a_little, cut, lose])
def test_a_broken_store_is_made_again(recipe: Make, cache: Path, harm: Callable[[Path], None]) -> None:
    first = list(opened(recipe()).train)
    (folder,) = cache.iterdir()
    harm(folder)
    session = opened(recipe())
    assert noted(session, f"those in {folder} were not used") and isinstance(session.train, StoredGroups)
    assert list(session.train) == first and [p.name for p in cache.iterdir()] == [folder.name]
    assert noted(opened(recipe()), "as an earlier run tokenised them")


def test_columns_that_json_does_not_have_stay_in_memory(recipe: Make, tmp_path: Path, cache: Path) -> None:
    table = {"prompt": ["1+1="] * 9, "chosen": ["2"] * 9, "rejected": ["3"] * 9, "raw": [b"\1"] * 9}
    pyarrow.parquet.write_table(pyarrow.table(table), tmp_path / "rows.parquet")
    session = opened(recipe(data=[{"path": str(tmp_path / "rows.parquet")}]))
    assert isinstance(session.train, list) and session.train[0].prompt.columns["raw"] == b"\1"
    assert noted(session, "kept in memory, not on disk") and noted(session, "JSON has no bytes")
    assert list(cache.iterdir()) == []


def test_a_folder_that_cannot_be_written_costs_a_note(recipe: Make, cache: Path) -> None:
    cache.parent.mkdir()
    cache.write_text("a file, not a folder")
    session = opened(recipe())
    assert isinstance(session.train, list) and noted(session, f"{cache} can't be written")
    assert noted(session, "set PREFTUNE_CACHE")


def test_a_full_disk_costs_a_note(recipe: Make, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Any, group: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(prepared.SplitWriter, "append", full)
    session = opened(recipe())
    assert isinstance(session.train, list) and noted(session, "can't be written (No space left on device)")
    assert list(cache.iterdir()) == []


def test_a_file_that_changes_while_it_is_read_is_not_kept(
    recipe: Make, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, plain = tmp_path / "pairs.jsonl", prepared.tokenise

    def meanwhile(*args: Any) -> Any:
        path.write_text(path.read_text() + "\n")
        return plain(*args)

    monkeypatch.setattr(prepared, "tokenise", meanwhile)
    session = opened(recipe())
    assert isinstance(session.train, list) and noted(session, "changed while it was read")
    assert list(cache.iterdir()) == []


def test_another_process_may_be_faster(recipe: Make, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, running = prepared.tokenise, []

    def meanwhile(*args: Any) -> Any:
        if not running:
            running.append(True)
            running.append(opened(recipe()))
        return plain(*args)

    monkeypatch.setattr(prepared, "tokenise", meanwhile)
    session = opened(recipe())
    assert isinstance(session.train, StoredGroups) and list(session.train) == list(running[1].train)
    assert len(list(cache.iterdir())) == 1


def test_the_cache_keeps_what_was_used_last(recipe: Make, cache: Path) -> None:
    def age() -> None:
        for meta in cache.glob("*/meta.json"):
            os.utime(meta, (meta.stat().st_mtime - 100,) * 2)

    (cache / ".writing-dead").mkdir(parents=True)
    (cache / ".writing-live").mkdir()
    (cache / ".writing-dead" / "train.ids").write_text("")
    for path in (cache / ".writing-dead" / "train.ids", cache / ".writing-dead"):
        os.utime(path, (0, 0))
    sessions = []
    for seed in (*range(prepared.KEPT), 0, prepared.KEPT):  # the first is used once more
        sessions.append(opened(recipe(seed=seed)))
        age()
    kept = [path for path in cache.iterdir() if not path.name.startswith(".")]
    assert len(kept) == prepared.KEPT
    assert {path.name for path in cache.iterdir()} - {path.name for path in kept} == {".writing-live"}
    assert noted(opened(recipe(seed=0)), "as an earlier run") and not noted(opened(recipe(seed=1)), "as an earlier run")
    assert len(list(sessions[1].train)) == 28  # a run whose store was removed goes on


def test_what_cannot_be_used_is_the_same_error(recipe: Make, tmp_path: Path, cache: Path) -> None:
    with pytest.raises(DataError, match="no row is left"):
        opened(recipe(tokens={"max_prompt_tokens": 1}))
    with pytest.raises(DataError, match=r"pairs\.jsonl:1: prompt over"):
        opened(recipe(tokens={"max_prompt_tokens": 1, "on_too_long": "error"}))
    assert list(cache.iterdir()) == []
    tiny.write(tmp_path / "pairs.jsonl", [{"prompt": "", "chosen": "", "rejected": "a"}])
    with pytest.raises(PreftuneError):
        opened(recipe())


# --------------------------------------------------------------------------------------------- runs


@pytest.mark.parametrize("method", ["dpo", "kto"])
def test_a_run_on_stored_rows_is_the_run(
    recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    changes = {"method": method, "eval": {"holdout": 5}}
    run(recipe(**changes), tmp_path / "first")
    run(recipe(**changes), tmp_path / "second")
    monkeypatch.setattr(prepared, "STORED_FROM", 10**9)
    monkeypatch.setenv("PREFTUNE_CACHE", str(tmp_path / "other"))
    run(recipe(**changes), tmp_path / "memory")
    assert tiny.same_run(tmp_path / "memory", tmp_path / "first") == []
    assert tiny.same_run(tmp_path / "memory", tmp_path / "second") == []
    notes = json.loads((tmp_path / "second" / "summary.json").read_text())["notes"]
    assert any("as an earlier run tokenised them" in note for note in notes)


@pytest.mark.parametrize("begins", ["stored", "in memory"])
def test_a_run_resumes_from_either(recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begins: str) -> None:
    from preftune.train.loop import _Loop

    plain, stop = _Loop._update, [3]

    def update(self: _Loop, step: int, prepared_: Any) -> Any:
        if step in stop:
            stop.clear()
            raise KeyboardInterrupt
        return plain(self, step, prepared_)

    monkeypatch.setattr(_Loop, "_update", update)
    first, second = recipe(tokens={"cache": begins == "stored"}), recipe(tokens={"cache": begins != "stored"})
    with pytest.raises(KeyboardInterrupt):
        run(first, tmp_path / "run")
    assert check_same_recipe(tmp_path / "run", second) != []
    run(second, tmp_path / "run", resume=True)
    run(first, tmp_path / "whole")
    assert tiny.same_run(tmp_path / "run", tmp_path / "whole") == []


@pytest.mark.parametrize("method", ["grpo", "rft"])
def test_a_policy_answers_stored_prompts(recipe: Make, tmp_path: Path, method: str) -> None:
    changes: dict[str, Any] = {
        "method": method, "sampling": {"group_size": 3, "max_tokens": 4}, "train": {"steps": 2},
        "rewards": [{"name": "length", "args": {"at_most": 2, "ramp": 4}}],
    }  # fmt: skip
    run(recipe(**changes), tmp_path / "stored")
    run(recipe(**changes, tokens={"cache": False}), tmp_path / "memory")
    assert tiny.same_run(tmp_path / "memory", tmp_path / "stored") == []


# --------------------------------------------------------------------------------------------- workers


def examples() -> list[Example]:
    chat = (Message("user", "Hi <|im_end|> there"),)
    rows = [Example(f"{n}+1=", (str(n + 1), "no"), {"n": n}, f"a:{n}", (1.0, 0.0)) for n in range(600)]
    return [*rows, Example(chat, ((Message("assistant", "Größe"),),), {"x": [1]}, "b:1")]


@pytest.fixture
def parallel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "PARALLEL_FROM", 2)
    monkeypatch.setattr(workers, "CHUNK", 50)
    monkeypatch.setattr(workers, "cores", lambda: 2)


def test_workers_give_the_same_rows_in_order(parallel: None, monkeypatch: pytest.MonkeyPatch) -> None:
    made, rows = make_contract(), examples()
    answered: list[int] = []
    plain = workers._Worker.ask

    def ask(self: Any, some: Any) -> Any:
        reply = plain(self, some)
        answered.append(0 if reply is None else len(reply[0]))
        return reply

    monkeypatch.setattr(workers._Worker, "ask", ask)
    for whole in (True, False):
        alone = [made.tokenise(row, with_completions=whole) for row in rows]
        assert list(workers.tokenised(made, rows, with_completions=whole)) == alone
        assert sum(answered) == len(rows) and len(answered) == 13
        answered.clear()


def test_the_first_bad_row_is_the_error(parallel: None) -> None:
    rows = examples()[:300]
    for place in (120, 260):
        rows[place] = Example("x", (), {}, f"bad:{place}")
    found = workers.tokenised(make_contract(), rows, with_completions=True)
    taken = []
    with pytest.raises(DataError, match=r"bad:120: the row has a prompt but no completion"):
        taken.extend(found)
    assert len(taken) <= 120


@pytest.mark.parametrize("harm", ["dies", "does not start", "not sent"])
def test_without_workers_this_process_does_it(parallel: None, monkeypatch: pytest.MonkeyPatch, harm: str) -> None:
    made, rows = make_contract(), examples()[:200]
    alone = [made.tokenise(row, with_completions=True) for row in rows]
    if harm == "dies":
        monkeypatch.setattr(workers, "_BOOT", "import os; os._exit(3)")
    elif harm == "does not start":
        monkeypatch.setattr(workers.sys, "executable", "/no/such/python")
    else:
        monkeypatch.setattr(made, "odd", lambda: None, raising=False)  # can't be pickled
    assert list(workers.tokenised(made, rows, with_completions=True)) == alone


def test_every_field_of_a_tokenised_row_comes_back(parallel: None) -> None:
    from preftune.tokens import Tokenised

    made, rows = make_contract(), [Example("a", ("b",), {}, "x"), Example("<|im_end|>", ("b",), {}, "y")]
    found = list(workers.tokenised(made, rows, with_completions=True))
    for one, other in zip(found, (made.tokenise(row, with_completions=True) for row in rows), strict=True):
        assert all(getattr(one, field.name) == getattr(other, field.name) for field in fields(Tokenised))
