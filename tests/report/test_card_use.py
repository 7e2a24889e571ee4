"""The card's code runs as it stands, and its examples are the saved model's own answers."""

from __future__ import annotations

import contextlib
import io
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from preftune.config import Recipe
from preftune.report import write_model_card
from preftune.train.loop import run
from tests import tiny, tinyreward

sys.path.insert(0, str(Path(__file__).parent))
from make_rounds import make_gmpo, make_ppo
from make_run import make_run

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cards")
    tiny.save(folder / "base")
    tiny.save(folder / "chat")
    config = json.loads((folder / "chat" / "tokenizer_config.json").read_text())
    (folder / "chat" / "tokenizer_config.json").write_text(
        json.dumps(
            {**config, "chat_template": tinyreward.TEMPLATE.replace("role }}", "role }}{{ mood | default('') }}")}
        )
    )
    tinyreward.save(folder / "rm")
    rows = tiny.sums(20)
    tiny.write(folder / "sums.jsonl", rows)
    chats = [{"prompt": [{"role": "user", "content": row["prompt"]}], "answer": row["answer"]} for row in rows]
    tiny.write(folder / "chats.jsonl", chats)
    return folder


def finished(home: Path, name: str, *, model: dict[str, Any], data: str = "sums.jsonl", **sections: Any) -> Path:
    recipe = {
        "method": "ppo", "name": name, "model": model, "data": [{"path": str(home / data)}], "eval": {"holdout": 4},
        "rewards": [{"name": "reward-model", "args": {"path": str(home / "rm")}}], "log": {"sinks": []},
        "sampling": {"group_size": 2, "max_tokens": 6}, "train": {"steps": 1, "batch_size": 2}, **sections,
    }  # fmt: skip
    run(Recipe.model_validate(recipe), home / name)
    write_model_card(home / name)
    return home / name


def code_of(folder: Path) -> str:
    (found,) = re.findall(r"```python\n(.*?)\n```", (folder / "README.md").read_text(encoding="utf-8"), re.S)
    return found


def said_by(folder: Path, code: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(folder)
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(code, "README.md", "exec"), {})
    return out.getvalue().removesuffix("\n")


def answers_of(folder: Path) -> dict[str, str]:
    kept = json.loads((folder / "summary.json").read_text())["kept_step"]
    lines = tiny.lines(folder / "samples.jsonl")
    return {s["prompt"]: s["completion"] for s in lines if s["split"] == "validation" and s["step"] == kept}


@pytest.mark.parametrize("lora", [None, {"r": 2}])
def test_the_code_answers_as_the_examples_say(
    home: Path, lora: dict[str, Any] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = finished(home, f"plain-{lora is not None}", model={"path": str(home / "base"), "lora": lora})
    code, card = code_of(folder), (folder / "README.md").read_text(encoding="utf-8")
    assert ("PeftModel" in code) == (lora is not None)
    assert "max_new_tokens=6, do_sample=False" in code
    assert "Greedy, at most 6 tokens, by the saved model: the first validation rows" in card
    answers = answers_of(folder)
    prompt = re.search(r'prompt = "(.*)"', code)
    assert prompt is not None
    assert said_by(folder, code, monkeypatch) == answers[prompt[1]]
    for text in answers.values():
        assert f"```text\n{text.rstrip()}\n```" in card
    # The reward model has a name, whatever folder it lies in.
    assert re.search(r"Rewards and weights: reward-model \(\S*rm\) × 1\.0", card)


def test_a_chat_model_is_asked_by_its_template(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = finished(
        home, "chatty", model={"path": str(home / "chat")}, data="chats.jsonl",
        tokens={"chat_template_kwargs": {"mood": "!"}}, eval={"holdout": 4, "temperature": 0.5, "max_tokens": 4},
        rewards=[{"name": "length", "args": {"at_most": 2}}],
    )  # fmt: skip
    code = code_of(folder)
    assert 'messages = [{"role": "user", "content": "What kind of sport do you like?"}]' in code
    assert 'apply_chat_template(messages, tokenize=False, add_generation_prompt=True, mood="!")' in code
    assert "max_new_tokens=4, do_sample=True, temperature=0.5" in code
    assert "Drawn at temperature 0.5, at most 4 tokens" in (folder / "README.md").read_text(encoding="utf-8")
    said_by(folder, code.replace("What kind of sport do you like?", "why?"), monkeypatch)


def test_the_users_words_are_taken_out_of_a_known_template(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", steps=4)
    final = folder / "final"
    final.mkdir()
    (final / "chat_template.jinja").write_text("{{ messages }}")
    (final / "tokenizer.json").write_text(json.dumps({"added_tokens": [{"content": "<|im_start|>"}]}))
    rows = tiny.lines(folder / "samples.jsonl")
    for row in rows:
        row["prompt"] = '<|im_start|>user\nПочему небо "синее"?\u202e<|im_end|>\n<|im_start|>assistant\n'
    tiny.write(folder / "samples.jsonl", rows)
    write_model_card(folder)
    assert '"content": "Почему небо \\"синее\\"?\\U0000202e"}]' in code_of(folder)
    (final / "tokenizer.json").write_text("{")  # damaged: the rendered prompt itself is right as well
    write_model_card(folder)
    assert 'prompt = "<|im_start|>user\\n' in code_of(folder)


HOSTILE = '"""\nimport os; os.system("x")\n```\n# heading <script>alert(1)</script>\n\u2028\x00'


def test_hostile_text_stays_a_string(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", steps=4)
    (folder / "final").mkdir()
    rows = tiny.lines(folder / "samples.jsonl")
    for row in rows:
        row |= {"prompt": HOSTILE, "completion": HOSTILE, "columns": {"answer": HOSTILE}, "where": HOSTILE}
    tiny.write(folder / "samples.jsonl", rows)
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    recipe["rewards"] = [{"name": "reward-model", "args": {"path": HOSTILE}}]
    recipe["tokens"] = {"chat_template_kwargs": {"a=1); evil(": 1}}
    recipe["sampling"]["stop"] = [HOSTILE]
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    card = write_model_card(folder).read_text(encoding="utf-8")
    (code,) = re.findall(r"\n````python\n(.*?)\n````\n", card, re.S)
    names: dict[str, Any] = {}
    lines = [line for line in code.splitlines() if line.startswith("prompt = ")]
    exec("\n".join(lines), names)
    assert names["prompt"] == HOSTILE
    compile(code, "README.md", "exec")
    # Outside fences there is no tag and no heading of theirs.
    outside = re.sub(r"(?ms)^(`{3,})\w*\n.*?^\1$", "", card)
    assert "<script>" not in outside
    assert "# heading" not in [line.strip() for line in outside.splitlines()]


def test_examples_are_of_the_kept_step_and_the_test_rows(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", steps=40)
    rows = tiny.lines(folder / "samples.jsonl")
    for row in rows:
        row["completion"] = f"{row['split']} at {row['step']}"
    tiny.write(folder / "samples.jsonl", rows)
    summary = json.loads((folder / "summary.json").read_text())
    (folder / "summary.json").write_text(json.dumps({**summary, "kept_step": 40}))
    card = write_model_card(folder).read_text(encoding="utf-8")
    assert "Greedy, at most 96 tokens, by the saved model: the first held-out test rows" in card
    assert "test at 40" in card and "at 0\n" not in card and "validation at" not in card
    # Half-finished: the last measurement there is, and no word of a saved model.
    (folder / "summary.json").unlink()
    tiny.write(folder / "samples.jsonl", [row for row in rows if row["split"] != "test"])
    card = write_model_card(folder).read_text(encoding="utf-8")
    assert "by the model at step 40: the first validation rows" in card
    tiny.write(folder / "samples.jsonl", [row for row in rows if row["split"] == "train"])
    card = write_model_card(folder).read_text(encoding="utf-8")
    assert "## Example generations" not in card and "## Samples" in card


def test_cards_of_ppo_and_gmpo_name_who_scored(tmp_path: Path) -> None:
    card = write_model_card(make_ppo(tmp_path / "ppo", steps=8)).read_text(encoding="utf-8")
    assert "Rewards and weights: reward-model (org/reward-135M) × 1.0." in card
    folder = make_gmpo(tmp_path / "gmpo", steps=8)
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    recipe["gmpo"] = {"critic": {"kind": "generative", "truth": "accuracy"}}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    card = write_model_card(folder).read_text(encoding="utf-8")
    assert "Scored by a generative critic" in card and "it learnt from the reward accuracy" in card
