"""`preftune chat`: real tiny models end to end, from scripts and at a pseudo-terminal."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from preftune.cli.chat import _parser
from preftune.cli.main import main
from preftune.competition import Construct
from preftune.config import CompetitionConfig
from preftune.recipes import dump, resolve
from preftune.talk.roles import ROLES
from preftune.talk.settings import COMPETITION_TEMPERATURE, TalkConfig
from tests import tinyreward
from tests.talk import scripted
from tests.talk.scripted import prompt_length

torch.set_num_threads(1)

DUEL = {
    "root": "duel",
    "personas": [{"name": "cat", "prompt": "Purr."}, {"name": "dog", "prompt": "Bark."}],
    "judge": "Judge.",
    "answer": "Answer.",
}
CONSTRUCT = Construct.of(CompetitionConfig.model_validate(DUEL))
CONTEST = CONSTRUCT.render({"cat": "Purr, 7.", "dog": "Wuff\x1b[31m, 8."}, "Hm.", "cat", "It is 7.\r\x1b]0;x\x07")
SHOWN = "It is 7.␍␛]0;x␇\n"
SYSTEM = ("system", "Count to two.")
HI, MORE, SUM = ("user", "Hi"), ("user", "More"), ("user", "3+4?")
HELLO = ("assistant", "Hello, größe 🐉!")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of answers, and runs whose final/ it is."""
    folder = tmp_path_factory.mktemp("chat")
    contest = prompt_length(("system", CONSTRUCT.system_prompt), SUM)
    answers = {
        prompt_length(HI): "Hello, größe 🐉!",
        prompt_length(HI, HELLO, MORE): "No more.",
        prompt_length(SYSTEM, HI): "One.\nEND, two",
        contest: CONTEST,
        prompt_length(("system", CONSTRUCT.system_prompt), ("user", "What is 3+4?" * 30)): "No contest.",
    }
    scripted.save(folder / "model", answers)
    recipe: dict[str, Any] = {
        "method": "sft", "model": {"path": "m"}, "data": [{"path": "d.jsonl", "system": "Count to two."}],
        "sampling": {"stop": ["END"]}, "train": {"steps": 1},
    }  # fmt: skip
    _run(folder / "told", recipe, folder / "model")
    _run(folder / "stages" / "rounds-1", recipe, folder / "model")
    _run(folder / "stages" / "duel", {**recipe, "data": [{"path": "d.jsonl"}], "competition": DUEL}, folder / "model")
    (folder / "stages" / "pipeline.json").write_text(json.dumps({"stages": ["rounds-1", "duel"]}))
    scripted.save(folder / "plain", {len("3+4="): "7."}, positions=64, width=32, template=None)
    _run(folder / "sums", {**recipe, "data": [{"path": "d.jsonl"}]}, folder / "plain")
    return folder


def _run(folder: Path, recipe: dict[str, Any], model: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(dump(resolve(recipe).stages[0]), encoding="utf-8")
    (folder / "final").symlink_to(model, target_is_directory=True)


def chat(home: Path, model: str, *flags: str) -> int:
    return main(["chat", str(home / model), "--temperature", "0.2", *flags])


def test_one_question_one_answer(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for flags in ((), ("--no_stream",)):
        assert chat(home, "model", "--once", "Hi", *flags) == 0
        done = capsys.readouterr()
        assert done.out == "Hello, größe 🐉!\n"
        length = prompt_length(HI)
        before, after = done.err.splitlines()
        assert before == f"prompt {length} tokens · {1024 - length:,} of 1,024 available"
        assert re.fullmatch(rf"answer 21 tokens · {length + 21} of 1,024 used · [\d,.]+ tokens/s", after)


def test_a_question_is_piped_in(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("Hi\n"))
    assert chat(home, "model") == 0
    assert capsys.readouterr().out == "Hello, größe 🐉!\n"
    monkeypatch.setattr("sys.stdin", io.StringIO("\n"))
    assert chat(home, "model") == 2
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\xff"), encoding="utf-8"))
    assert chat(home, "model") == 2
    assert "standard input is not utf-8 text (byte 0)" in capsys.readouterr().err


def test_history_goes_on(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "talk.jsonl"
    for question, answer in (("Hi", HELLO[1]), ("More", "No more.")):
        assert chat(home, "model", "--history", str(path), "--once", question) == 0
        assert capsys.readouterr().out == f"{answer}\n"
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert [(line["role"], line["content"]) for line in lines] == [HI, HELLO, MORE, ("assistant", "No more.")]
    path.write_text("{}\n")
    assert chat(home, "model", "--history", str(path), "--once", "Hi") == 2
    assert f"{path}:1: role is None" in capsys.readouterr().err


def test_a_run_brings_its_system_prompt_and_stop_strings(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert chat(home, "told", "--once", "Hi") == 0
    done = capsys.readouterr()
    assert done.out == "One.\n"
    assert done.err.splitlines()[0] == (
        f"the run {home / 'told'}: {home / 'told' / 'final'} · cpu, float32 · window 1,024 tokens"
    )
    assert chat(home, "told", "--once", "Hi", "--system", "", "--stop", "größe", "--stop", "x") == 0
    assert capsys.readouterr().out == "Hello, \n"


def test_a_contest_of_the_last_stage(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert chat(home, "stages", "--style", "competition", "--once", "3+4?") == 0
    done = capsys.readouterr()
    assert done.out == SHOWN
    assert f"stage duel, the last of 2 of the run {home / 'stages'}: " in done.err
    assert "\x1b" not in done.err
    assert chat(home, "stages", "--style", "competition", "--once", "3+4?", "--show-work") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == SHOWN.strip()
    assert lines[1:3] == ["▸ cat · 10 tokens · winner  Purr, 7.", "▸ dog · 15 tokens  Wuff␛[31m, 8."]
    assert lines[3].startswith("▸ judge · ")
    assert chat(home, "stages", "--style", "competition", "--once", "3+4?", "--show-work=columns") == 0
    text = capsys.readouterr().out
    assert "cat · 10 tokens · winner" in text and "Wuff␛[31m, 8." in text and "\x1b" not in text
    assert chat(home, "stages", "--once", "Hi") == 0
    done = capsys.readouterr()
    assert done.out == "Hello, größe 🐉!\n"
    assert "this run trained on contests; --style competition" in done.err


def test_a_construct_of_ones_own_and_no_contest(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "duel.yaml"
    path.write_text(json.dumps({"competition": DUEL}))
    flags = ["--style", "competition", "--construct", str(path)]
    assert chat(home, "model", *flags, "--once", "3+4?") == 0
    assert capsys.readouterr().out == SHOWN
    # Another contest's prompt is another prompt: the model has nothing to say there.
    assert chat(home, "model", *flags, "--once", "What is 3+4?" * 30) == 0
    done = capsys.readouterr()
    assert done.out == "No contest.\n"
    assert "note: no contest: the model answered straight away\n" in done.err


def test_defaults_of_the_two_styles(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[TalkConfig] = []

    class Stop(Exception):
        pass

    def keep(sampler: Any, contract: Any, settings: TalkConfig, **options: Any) -> None:
        seen.append(settings)
        raise Stop

    monkeypatch.setattr("preftune.talk.conversation.Talk", keep)
    for flags in ([], ["--style", "competition"], ["--style", "competition", "--temperature", "0.9"], ["--top_k=7"]):
        with pytest.raises(Stop):
            main(["chat", str(home / "model"), "--once", "Hi", *flags])
    assert [(s.temperature, s.top_k) for s in seen] == [(0.7, 50), (0.5, 50), (0.9, 50), (0.7, 7)]


def test_a_run_on_plain_text_talks_plainly(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its model has no template, and its recipe gives it none: it was trained on texts as they stood."""
    assert chat(home, "sums", "--once", "3+4=") == 0
    seen = capsys.readouterr()
    assert seen.out == "7.\n"
    assert "this run trained on plain text, so each of your texts stands alone (--plain)" in seen.err
    assert chat(home, "told", "--once", "Hi") == 0
    assert "plain text" not in capsys.readouterr().err


def test_plain_text(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert chat(home, "plain", "--once", "3+4=") == 2
    assert "has no chat template, so it can't hold a conversation: --plain" in capsys.readouterr().err
    assert chat(home, "plain", "--plain", "--once", "3+4=") == 0
    assert capsys.readouterr().out == "7.\n"
    assert chat(home, "plain", "--plain", "--once", "3+4=", "--system", "x") == 2
    assert "plain text has no place for a system prompt" in capsys.readouterr().err


def test_a_template_given_by_hand(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "bare.jinja"
    path.write_text("{{ messages[-1]['content'] }}{{ sign }}")
    flags = ["--chat_template", str(path), "--chat_template_kwargs", "{sign: '='}"]
    assert chat(home, "plain", *flags, "--once", "3+4") == 0
    assert capsys.readouterr().out == "7.\n"
    assert chat(home, "plain", *flags[:3], "{sing: 1}", "--once", "3+4") == 2
    assert "--chat_template_kwargs.sing: the chat template has no such variable" in capsys.readouterr().err


def test_an_error_with_a_models_own_words_is_harmless(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bad.jinja"
    path.write_text("{{ raise_exception('\x1b]0;mine\x07') }}")
    assert chat(home, "model", "--chat_template", str(path), "--once", "Hi") == 2
    done = capsys.readouterr()
    assert "the chat template refuses the conversation: ␛]0;mine␇" in done.err and "\x1b" not in done.err


def test_too_long(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert chat(home, "model", "--once", "x" * 2000) == 2
    done = capsys.readouterr()
    length = prompt_length(("user", "x" * 2000))
    assert done.out == ""
    assert done.err == (
        f"error: the prompt is {length:,} tokens and the window 1,024: {length - 1023:,} too many to leave room for an "
        "answer; shorten it\n"
    )
    assert chat(home, "model", "--once", "Hi", "--context", "21") == 2
    assert "1 too many to leave room for an answer; shorten it, or --context sets" in capsys.readouterr().err
    path = tmp_path / "talk.jsonl"
    path.write_text(json.dumps({"role": "user", "content": "x" * 2000}) + "\n")
    assert chat(home, "model", "--once", "Hi", "--history", str(path)) == 2
    assert "shorten it, or /forget 1 at a terminal makes room in the history" in capsys.readouterr().err
    assert chat(home, "model", "--once", "Hi", "--context", str(prompt_length(HI) + 2)) == 0
    done = capsys.readouterr()
    assert done.out == "He\n" and "cut at its limit of 2 tokens" in done.err
    assert chat(home, "model", "--once", "Hi", "--max_tokens", "1") == 0
    assert "1 at most for the answer" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--show-work"], "--show-work belongs to contests; add --style competition"),
        (["--construct", "court"], "--construct belongs to contests"),
        (["--style", "competition", "--role", "critic"], "a contest has a system prompt of its own"),
        (["--style", "competition", "--construct", "curt"], "did you mean court?"),
        (["--role", "critics"], "no role is named 'critics'; did you mean critic?"),
        (["--plain", "--role", "critic"], "--plain has no place for a system prompt"),
        (["--plain", "--chat_template", "x"], "--plain uses no chat template"),
        (["--temperature", "-1"], "--temperature: got '-1'; expected a number, at least 0"),
        (["--temprature", "1"], "did you mean --temperature?"),
        (["--model.path", "x"], "--model.path: a recipe's field"),
        (["--chat_template_kwargs", "[1]"], "expected a mapping"),
        (["--context", "5000"], "context 5,000 is more than the model's 1,024 positions"),
        (["--system", "@nothing"], "system prompt nothing can't be read"),
        (["--history", "no/such/folder"], "--history no/such/folder lies in no/such, which does not exist"),
        (["--device", "cuda"], "--device is cuda, but torch sees no GPU here"),
    ],
)
def test_wrong_requests(home: Path, flags: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    if "cuda" in flags and torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    assert main(["chat", str(home / "model"), "--once", "Hi", *flags]) == 2
    assert message in capsys.readouterr().err


def test_what_is_no_model_to_talk_to(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tinyreward.save(tmp_path / "rm")
    assert main(["chat", str(tmp_path / "rm"), "--once", "Hi"]) == 2
    assert "not a causal language model" in capsys.readouterr().err
    assert main(["chat", str(home / "nothing"), "--once", "Hi"]) == 2
    assert main(["chat"]) == 2
    assert "MODEL_OR_RUN" in capsys.readouterr().err
    path = tmp_path / "talk.jsonl"
    path.write_text('{"role": "system", "content": "x"}\n')
    flags = ["--style", "competition", "--history", str(path), "--once", "Hi"]
    assert main(["chat", str(home / "model"), *flags]) == 2
    assert "begins with a system prompt, and the contest has one, too" in capsys.readouterr().err


def test_an_adapter_is_talked_to_on_its_base(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import GPT2LMHeadModel

    base = GPT2LMHeadModel.from_pretrained(home / "model")
    wrapped = get_peft_model(
        base, LoraConfig(r=1, target_modules=["c_attn"], task_type="CAUSAL_LM", fan_in_fan_out=True)
    )
    wrapped.save_pretrained(tmp_path / "adapter")
    assert main(["chat", str(tmp_path / "adapter"), "--once", "Hi", "--temperature", "0"]) == 0
    assert capsys.readouterr().out == "Hello, größe 🐉!\n"


def test_help_is_quick_and_whole() -> None:
    code = (
        "import sys\nfrom preftune.cli.main import main\n"
        "try:\n    main(['chat', '--help'])\nexcept SystemExit:\n    pass\n"
        "print('HEAVY', [m for m in ('torch', 'transformers', 'rich', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.endswith("HEAVY []\n")
    for name in TalkConfig.model_fields:
        assert f"--{name} " in done.stdout
    for name, prompt in ROLES.items():
        assert f"  {name} " in done.stdout and prompt in done.stdout
    assert main(["--help"]) == 0


# --- a pseudo-terminal ----------------------------------------------------------------------------------------


class Terminal:
    """`preftune chat` at a terminal of its own."""

    def __init__(self, *arguments: str) -> None:
        self.master, slave = pty.openpty()
        code = (  # the terminal must be the process's own, or Ctrl-C would reach nobody
            "import fcntl, signal, sys, termios\nfcntl.ioctl(0, termios.TIOCSCTTY, 0)\n"
            # tests that run in the background inherit that Ctrl-C is ignored
            "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
            "from preftune.cli.main import main\nsys.exit(main(sys.argv[1:]))"
        )
        environment = {**os.environ, "TERM": "xterm", "COLUMNS": "80", "PYTHONIOENCODING": "utf-8"}
        environment.pop("NO_COLOR", None)
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, "chat", *arguments],
            stdin=slave, stdout=slave, stderr=slave, start_new_session=True, env=environment,
        )  # fmt: skip
        os.close(slave)
        self.text = ""
        self.read = 0

    def wait_for(self, wanted: str, timeout: float = 90.0) -> str:
        """All that comes up to the next `wanted`."""
        deadline = time.monotonic() + timeout
        while (at := self.text.find(wanted, self.read)) < 0:
            ready = select.select([self.master], [], [], max(deadline - time.monotonic(), 0))[0]
            assert ready, f"no {wanted!r} within {timeout} s; got {self.text[self.read :][-2000:]!r}"
            try:
                self.text += os.read(self.master, 65536).decode(errors="replace")
            except OSError:
                raise AssertionError(f"it ended before {wanted!r}: {self.text[self.read :][-2000:]!r}") from None
        since, self.read = self.text[self.read : at], at + len(wanted)
        return since

    def send(self, keys: str) -> None:
        os.write(self.master, keys.encode())

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.master)


def test_at_a_terminal(tmp_path: Path) -> None:
    """An answer that never ends is seen while it comes; Ctrl-C stops it, the talk goes on, Ctrl-D leaves."""
    scripted.save_endless(tmp_path / "endless")
    path = tmp_path / "talk.jsonl"
    terminal = Terminal(str(tmp_path / "endless"), "--history", str(path))
    try:
        assert "window 20,000 tokens" in terminal.wait_for("Ctrl-D leaves")
        terminal.wait_for("> ")
        terminal.send("Hi\n")
        terminal.wait_for("prompt 21 tokens · 19,979 of 20,000 available")
        terminal.wait_for("aaaaaaaaaa")
        terminal.send("\x03")
        terminal.wait_for(" · stopped")
        terminal.wait_for("> ")
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        assert [line["role"] for line in lines] == ["user", "assistant"]
        assert lines[1]["interrupted"] is True and set(lines[1]["content"]) == {"a"}
        terminal.send("\x03")
        terminal.wait_for("Ctrl-D or /exit leaves")
        terminal.send('"""\none\ntwo"""\n')
        terminal.wait_for("aaa")
        terminal.send("\x03")
        terminal.wait_for(" · stopped")
        terminal.send("/undo\n")
        terminal.wait_for("taken back: one")
        terminal.send("/set max_tokens 3\nOnce\n")
        assert "\x1b[2Kaaa\r\n" in terminal.wait_for("cut at its limit of 3 tokens")
        terminal.wait_for("> ")
        terminal.send("\x04")
        assert terminal.process.wait(timeout=30) == 0
    finally:
        terminal.close()
    assert len(path.read_text().splitlines()) == 4
    assert "Traceback" not in terminal.text


# --- the page -------------------------------------------------------------------------------------------------

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "chat.md").read_text(encoding="utf-8")


def test_the_page_is_true() -> None:
    """Commands, flags, roles, defaults, and its example for Python."""
    from preftune.talk.commands import HELP

    table = PAGE.partition("## In the talk")[2].partition("\n## ")[0]
    assert set(re.findall(r"`(/[a-z-]+)", table)) >= {usage.split()[0] for usage in HELP}
    parser = _parser()
    assert set(re.findall(r"`(--[a-z_-]+)", PAGE)) <= set(parser.flags)
    told = PAGE.partition("else `--role` (")[2].partition(")")[0]
    assert set(re.findall(r"`(\w+)`", told)) == set(ROLES)
    table = PAGE.partition("## Drawing answers")[2].partition("\n## ")[0]
    assert set(re.findall(r"`--(\w+)`", table)) == set(TalkConfig.model_fields)
    assert f"| {TalkConfig().temperature}; in a contest {COMPETITION_TEMPERATURE} |" in table
    assert f"| `--top_k` | {TalkConfig().top_k} |" in table


def test_the_pages_python_runs(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (example,) = re.findall(r"^```python\n(.*?)^```", PAGE, re.M | re.S)
    exec(example.replace("runs/my-run/final", str(home / "model")).replace("What is 6 times 7?", "Hi"), {})
    length = prompt_length(HI)
    assert capsys.readouterr().out == f"Hello, größe 🐉! 21 {1024 - length}\n"
