"""The loop at the terminal: reads what the user writes, asks the model, and obeys /commands."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Literal, get_args

from preftune.errors import PreftuneError, UsageError
from preftune.recipes.schema import nearest
from preftune.talk.answer import Answer, TooLong
from preftune.talk.conversation import Talk
from preftune.talk.history import HistoryFile, read_turns, write_turns
from preftune.talk.roles import ROLES, role
from preftune.talk.settings import read_settings, read_system
from preftune.talk.terminal import Screen, ShowWork
from preftune.talk.visible import one_line

HELP: dict[str, str] = {
    "/help": "this list",
    "/system [TEXT|@FILE|off]": "show or set the system prompt",
    "/role [NAME|off]": "list the ready-made roles or take one",
    "/reset": "forget all that was said",
    "/undo": "take the last question and its answer back",
    "/retry": "ask the last question anew",
    "/forget N": "no longer show the model the N oldest exchanges",
    "/save FILE": "write the talk into a new file",
    "/load FILE": "go on from a file's messages",
    "/show-work [folded|columns|off]": "unfold the last contest, or say how contests are shown",
    "/settings": "how answers are drawn, and how much room there is",
    "/set NAME VALUE": "change a setting: /set temperature 0.2",
    "/exit": "leave, as Ctrl-D does",
}
_COMMAND = re.compile(r"/([a-z][\w-]*)(?:\s+(.*))?", re.DOTALL)
_BLOCK = '"""'


class Leave(Exception):
    """The user wants to leave."""


class Loop:
    """A talk at the terminal.

    Args:
        history: where the talk is kept as it goes on.
        model: what one talks with, for /settings.
    """

    def __init__(self, talk: Talk, screen: Screen, *, history: HistoryFile | None = None, model: str = "") -> None:
        self.talk = talk
        self.screen = screen
        self.history = history
        self.model = model
        self._commands: dict[str, Callable[[str], None]] = {
            "help": self._help, "system": self._system, "role": self._role, "reset": self._reset, "undo": self._undo,
            "retry": self._retry, "forget": self._forget, "save": self._save, "load": self._load,
            "show-work": self._show_work, "settings": self._settings, "set": self._set, "exit": self._exit,
            "quit": self._exit,
        }  # fmt: skip
        self._editing = _line_editing([f"/{name}" for name in self._commands])

    def run(self) -> None:
        """Until the user leaves."""
        while True:
            try:
                text = self.read()
            except EOFError:
                self.screen.say("")
                return
            except KeyboardInterrupt:
                self.screen.say("")
                self.screen.dim("Ctrl-D or /exit leaves")
                continue
            except UnicodeDecodeError as error:
                self.screen.error(f"that is not {error.encoding} text; the terminal and LANG should agree")
                continue
            try:
                self.handle(text)
            except Leave:
                return
            except KeyboardInterrupt:
                self.screen.dim("stopped")
            except TooLong as error:
                self.screen.error(f"{error}{self._way_out(error)}")
            except PreftuneError as error:
                self.screen.error(str(error))

    def read(self) -> str:
        r"""What the user writes: one line; more after a backslash at its end, or between lines of \"\"\"."""
        line = self._input("> ")
        if line.lstrip().startswith(_BLOCK):
            lines = [line.lstrip().removeprefix(_BLOCK)]
            while not lines[-1].rstrip().endswith(_BLOCK):
                lines.append(self._input("… "))
            lines[-1] = lines[-1].rstrip().removesuffix(_BLOCK)
            return "\n".join(lines).strip("\n")
        lines = [line]
        while lines[-1].endswith("\\"):
            lines[-1] = lines[-1][:-1]
            lines.append(self._input("… "))
        return "\n".join(lines)

    def _input(self, prompt: str) -> str:
        if self._editing and self.screen.coloured:
            prompt = f"\x01\x1b[1m\x02{prompt}\x01\x1b[0m\x02"  # 1 and 2: what readline must not count
        return input(prompt)

    def handle(self, text: str) -> None:
        """A command, or a question; `//` begins a question with a slash.

        Raises:
            Leave: the user is done. PreftuneError: with what to do.
        """
        if not text.strip():
            return
        found = _COMMAND.fullmatch(text.strip())
        if found is None:
            question = text.lstrip()[1:] if text.lstrip().startswith("//") else text
            self._told(self.talk.ask(question, self.screen))
            return
        command = self._commands.get(found[1])
        if command is None:
            near = nearest(found[1], self._commands)
            hint = f"did you mean /{near}?" if near else "/help lists all"
            raise UsageError(f"/{found[1]} is no command; {hint} (//{found[1]} … is a question)")
        command((found[2] or "").strip())

    def _told(self, answer: Answer) -> None:
        self.screen.end(answer, self.talk.construct)
        if answer.kept:
            self._keep()

    def _keep(self) -> None:
        if self.history is not None:
            self.history.write(self.talk.own_system, self.talk.turns)

    def _way_out(self, error: TooLong) -> str:
        if error.forget is not None:
            return f". /forget {error.forget} makes room, /reset forgets all that was said; then /retry asks again"
        most = self.talk.context_length
        if most is None or self.talk.window < most:
            more = "" if most is None else f", up to {most:,}"
            return f". It does not fit by itself: shorten it, or /set context to more{more}"
        return ". It does not fit by itself, and the model has no more positions: shorten it"

    # ---------------------------------------------------------------------------------------------- commands

    def _help(self, _: str) -> None:
        width = max(map(len, HELP)) + 2
        for usage, words in HELP.items():
            self.screen.say(f"  {usage:<{width}}{words}")
        self.screen.say(
            'More than one line: end a line with \\, or write between lines of """. Ctrl-C stops an answer.'
        )

    def _system(self, text: str) -> None:
        if not text:
            self.screen.say(self.talk.system or "no system prompt")
            return
        self.talk.tell("" if text == "off" else read_system(text))
        self._keep()
        self.screen.dim("from the next question on" if self.talk.system else "no system prompt from now on")

    def _role(self, name: str) -> None:
        if not name:
            for one, prompt in ROLES.items():
                self.screen.say(f"  {one:<12}{prompt}")
            return
        if self.talk.construct is not None and name != "off":
            raise UsageError("the contest has a system prompt of its own; /system TEXT takes its place")
        self.talk.tell(None if name == "off" else role(name))
        self._keep()
        self.screen.dim("from the next question on")

    def _reset(self, _: str) -> None:
        self.screen.dim(f"{_exchanges(self.talk.forget())} forgotten")
        self._keep()

    def _undo(self, _: str) -> None:
        question = self.talk.undo()
        if question is None:
            raise UsageError("there is nothing to take back")
        self.screen.dim(f"taken back: {one_line(question)}")
        self._keep()

    def _retry(self, _: str) -> None:
        answer = self.talk.retry(self.screen)
        if answer is None:
            raise UsageError("there is no question to ask again")
        self._told(answer)

    def _forget(self, count: str) -> None:
        if not count.isdigit() or not int(count):
            raise UsageError(f"/forget {count or 'N'}: how many exchanges? A whole number, at least 1")
        done = self.talk.forget(int(count))
        left = len(self.talk.exchanges())
        self.screen.dim(f"{_exchanges(done)} forgotten, {left} left")
        self._keep()

    def _save(self, name: str) -> None:
        if not name:
            raise UsageError("/save FILE: a new file's name is missing")
        path = Path(name).expanduser()
        if path.exists():
            raise UsageError(f"{path} exists already; name a new file")
        write_turns(path, self.talk.own_system, self.talk.turns)
        self.screen.dim(f"{len(self.talk.turns)} messages in {path}")

    def _load(self, name: str) -> None:
        if not name:
            raise UsageError("/load FILE: a file's name is missing")
        system, turns = read_turns(Path(name).expanduser())
        if system is not None:
            if self.talk.construct is not None:
                raise UsageError(f"{name} has a system prompt, which would take the place of the contest's; remove it")
            self.talk.tell(system)
        self.talk.load(turns)
        self._keep()
        self.screen.dim(f"{len(turns)} messages of {name}")

    def _show_work(self, how: str) -> None:
        talk = self.talk
        if talk.construct is None:
            raise UsageError("there are no contests in this talk; preftune chat --style competition holds them")
        if how:
            self._choose_work(how)
            return
        last = talk.last
        if last is None or last.contest is None:
            raise UsageError("there was no contest yet")
        whole: Literal["columns", "whole"] = "columns" if self.screen.show_work == "columns" else "whole"
        self.screen.contest(last.contest, talk.construct, last.ends, whole)

    def _choose_work(self, how: str) -> None:
        for choice in get_args(ShowWork):
            if how == choice:
                self.screen.show_work = choice
                self.screen.dim(f"contests are shown: {how}")
                return
        raise UsageError(f"/show-work {how}: expected one of {', '.join(get_args(ShowWork))}, or nothing")

    def _settings(self, _: str) -> None:
        talk = self.talk
        shown: dict[str, object] = {"model": self.model, **talk.settings.model_dump()}
        shown["seed"] = talk.seed if talk.settings.seed is not None else f"{talk.seed} (drawn)"
        shown["context"] = talk.window
        if talk.settings.max_tokens is None:
            shown["max_tokens"] = "all that the window leaves"
        if talk.construct is not None:
            shown["show_work"] = self.screen.show_work
        forgotten = sum(turn.forgotten for turn in talk.turns)
        shown["talk"] = _exchanges(len(talk.exchanges())) + (f", {forgotten} messages forgotten" if forgotten else "")
        shown["system"] = one_line(talk.system) or "none"
        if self.history is not None:
            shown["history"] = self.history.path
        for name, value in shown.items():
            self.screen.say(f"  {name:<20}{value}")

    def _set(self, text: str) -> None:
        name, _, value = text.partition(" ")
        if not value.strip():
            raise UsageError("/set NAME VALUE: /settings lists the names")
        if name.replace("-", "_") == "show_work":
            self._choose_work(value.strip())
            return
        self.talk.use(read_settings({name: value.strip()}, self.talk.settings))
        self.screen.dim(f"{name}: {getattr(self.talk.settings, name)}")

    def _exit(self, _: str) -> None:
        raise Leave


def _exchanges(count: int) -> str:
    return f"{count} exchange{'' if count == 1 else 's'}"


def _line_editing(names: list[str]) -> bool:
    """Arrow keys, a history of lines, Tab for commands; False where Python has no readline."""
    try:
        import readline
    except ImportError:
        return False

    def complete(text: str, state: int) -> str | None:
        fitting = [f"{name} " for name in names if text.startswith("/") and name.startswith(text)]
        return fitting[state] if state < len(fitting) else None

    readline.set_completer(complete)
    readline.set_completer_delims(" \t\n")
    libedit = "libedit" in (readline.__doc__ or "")
    readline.parse_and_bind("bind ^I rl_complete" if libedit else "tab: complete")
    return True
