"""`preftune chat MODEL_OR_RUN`: talk with a model at the terminal, or ask it one question from a script."""

from __future__ import annotations

import argparse
import random
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from preftune.cli.parser import Parser, help_text, metavar, split_overrides
from preftune.errors import PreftuneError, UsageError
from preftune.recipes.schema import Leaf
from preftune.talk.roles import ROLES
from preftune.talk.settings import COMPETITION_TEMPERATURE, TalkConfig, read_settings, read_system

if TYPE_CHECKING:
    from preftune.competition import Construct
    from preftune.talk.conversation import Talk
    from preftune.talk.history import HistoryFile
    from preftune.talk.place import Place
    from preftune.talk.terminal import Screen

_ABOUT = """\
Talks with a model: a hub id, a model or adapter folder, or a run (its final/; of several stages the last one's).
In the talk /help lists the commands, Ctrl-C stops an answer, Ctrl-D leaves. See docs/chat.md.

  preftune chat Qwen/Qwen3-0.6B --role teacher --history talk.jsonl
  preftune chat runs/my-run --once "What is 6 times 7?"        echo "What is 6 times 7?" | preftune chat runs/my-run
  preftune chat runs/my-run --style competition --show-work columns
"""


def execute(arguments: list[str]) -> int:
    parser = _parser()
    kept, extra = split_overrides(parser, arguments)
    if extra:
        raise UsageError(f"--{next(iter(extra))}: a recipe's field; preftune chat --help lists what a talk has")
    options = parser.parse(kept)
    try:
        return _talk(options)
    except PreftuneError as error:
        from preftune.talk.visible import visible

        error.args = (visible(str(error)),)  # it may quote a model's template or a file
        raise
    except KeyboardInterrupt:
        print("", file=sys.stderr)
        return 130


def _talk(options: argparse.Namespace) -> int:
    from preftune.talk.place import find

    _check(options)
    place = find(options.model)
    if place.is_plain and not (options.plain or options.chat_template or options.role):
        options.plain = True
        print("this run trained on plain text, so each of your texts stands alone (--plain)", file=sys.stderr)
    construct, system = _contest(options, place)
    settings = _settings(options, place)
    question = _question(options)
    chosen = read_system(options.system) if options.system is not None else None
    if chosen is None and options.role is not None:
        from preftune.talk.roles import role

        chosen = role(options.role)
    history, chosen, turns = _history(options, chosen, construct)

    from preftune.talk.conversation import Talk
    from preftune.talk.terminal import Screen

    alone = question is not None
    screen = Screen(
        sys.stdout, sys.stderr if alone else sys.stdout, stream=not options.no_stream, show_work=options.show_work
    )
    screen.passing(f"loading {place.path} …", now=True)
    opened, words = _open(options, place)
    talk = Talk(
        opened.sampler, opened.contract, settings, context_length=opened.context_length,
        system=system if chosen is None else "", construct=construct, plain=options.plain,
        seed=random.SystemRandom().randrange(2**31),
    )  # fmt: skip
    talk.tell(chosen)
    talk.load(turns)
    _introduce(screen, talk, place, words, options.style, alone=alone)
    if question is not None:
        return _once(talk, screen, question, history)
    from preftune.talk.commands import Loop

    Loop(talk, screen, history=history, model=f"{place.path} ({words})").run()
    return 0


def _once(talk: Talk, screen: Screen, question: str, history: HistoryFile | None) -> int:
    from preftune.talk.answer import TooLong

    try:
        answer = talk.ask(question, screen)
    except TooLong as error:
        ways = ["shorten it"]
        if error.forget is not None:
            ways.append(f"/forget {error.forget} at a terminal makes room in the history")
        if talk.context_length is None or talk.window < talk.context_length:
            ways.append("--context sets another window")
        raise UsageError(f"{error}; {', or '.join(ways)}") from None
    screen.end(answer, talk.construct)
    if answer.kept and history is not None:
        history.write(talk.own_system, talk.turns)
    return 130 if answer.finish == "interrupted" else 0


# ------------------------------------------------------------------------------------------------------- flags


def _parser() -> Parser:
    width = max(map(len, ROLES)) + 2
    parser = Parser(
        prog="preftune chat",
        usage="preftune chat MODEL_OR_RUN [--style competition] [--role NAME | --system TEXT] [--once QUESTION] …",
        description=_ABOUT,
        epilog="roles:\n" + "\n".join(f"  {name:<{width}}{prompt}" for name, prompt in ROLES.items()),
    )
    parser.add_argument("model", metavar="MODEL_OR_RUN", help="hub id, model folder, adapter folder or run folder")
    add = parser.add_argument_group("the talk").add_argument
    add("--style", choices=("chat", "competition"), default="chat",
        help="competition: personas compete, and only the professional answer is shown (default chat)")  # fmt: skip
    add("--construct", metavar="NAME|FILE", default=None,
        help="the contest: pirate-knight-viking, court, strategies, or a .yaml file with a recipe's section "
        "competition (default: the run's, else pirate-knight-viking)")  # fmt: skip
    add("--show-work", "--show_work", nargs="?", const="folded", default="off", choices=("folded", "columns"),
        help="show the contest behind its answer: a line for each persona, or side by side")  # fmt: skip
    add("--system", metavar="TEXT|@FILE", default=None,
        help='system prompt (default: the one that the run was trained with); "" for none')  # fmt: skip
    add("--role", metavar="NAME", default=None, help="a ready-made system prompt, see below; --system overrides it")
    add("--plain", action="store_true", help="no conversation: each text stands alone and is continued as it is")
    add("--history", metavar="FILE", default=None,
        help="JSONL file of messages: read if it exists, kept up to date as the talk goes on")  # fmt: skip
    add("--once", metavar="QUESTION", default=None,
        help="answer this on standard output and leave; so does a question piped in")  # fmt: skip
    add("--no_stream", action="store_true", help="show answers when they are whole")
    add = parser.add_argument_group("drawing answers").add_argument
    for name, info in TalkConfig.model_fields.items():
        several: dict[str, Any] = {"action": "append", "metavar": "TEXT"} if name == "stop" else {}
        text = help_text(Leaf((name,), info)).replace("%", "%%")
        shown = "text that ends an answer, and is not shown; may be given several times" if name == "stop" else text
        add(f"--{name}", default=None, help=shown, **{"metavar": metavar(info.annotation), **several})
    add = parser.add_argument_group("the model").add_argument
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where it runs (default auto)")
    add("--dtype", choices=("auto", "float32", "bfloat16"), default="auto",
        help="type of its weights (default auto: bfloat16 on a GPU, float32 else)")  # fmt: skip
    add("--revision", metavar="NAME", default=None, help="hub revision (branch, tag or commit)")
    add("--trust_remote_code", action="store_true", help="run code that ships with the model")
    add("--chat_template", metavar="FILE.jinja", default=None, help="template instead of the model's own")
    add("--chat_template_kwargs", metavar="{…}", default=None,
        help="arguments of the template, as {enable_thinking: false} (default: the run's)")  # fmt: skip
    return parser


def _check(options: argparse.Namespace) -> None:
    """Flags that contradict each other, or that nothing would read."""
    if options.style != "competition":
        for name, given in (("--construct", options.construct), ("--show-work", options.show_work != "off")):
            if given:
                raise UsageError(f"{name} belongs to contests; add --style competition")
    elif options.role is not None:
        raise UsageError("--role: a contest has a system prompt of its own; --system TEXT would take its place")
    if options.plain and (options.chat_template or options.chat_template_kwargs):
        raise UsageError("--plain uses no chat template; remove --chat_template and --chat_template_kwargs")
    if options.plain and options.role is not None:
        raise UsageError("--plain has no place for a system prompt; remove --role")


def _settings(options: argparse.Namespace, place: Place) -> TalkConfig:
    given = {name: getattr(options, name) for name in TalkConfig.model_fields}
    given = {name: value for name, value in given.items() if value is not None}
    if options.style == "competition":
        given.setdefault("temperature", COMPETITION_TEMPERATURE)
    if place.recipe is not None and place.recipe.sampling.stop:
        given.setdefault("stop", list(place.recipe.sampling.stop))
    return read_settings(given, flag="--")


def _contest(options: argparse.Namespace, place: Place) -> tuple[Construct | None, str]:
    """The construct, None without a contest, and the system prompt where the user gives none."""
    if options.style != "competition":
        return None, "" if options.plain else place.system
    from preftune.competition import Construct
    from preftune.talk.construct import read_construct

    if options.construct is not None:
        construct = read_construct(options.construct)
        return construct, construct.system_prompt
    if place.problem:
        raise UsageError(f"{place.problem}. So the run's contest is unknown; name one with --construct")
    construct = Construct.of(place.competition)
    return construct, place.system or construct.system_prompt


def _question(options: argparse.Namespace) -> str | None:
    """The one question, from the flag or piped in; None for a talk at the terminal."""
    text: str | None = options.once
    if text is None and not sys.stdin.isatty():
        try:
            text = sys.stdin.read()
            # A conversation's message ends where the words end; plain text is taken as it is.
            text = text if options.plain else text.removesuffix("\n")
        except UnicodeDecodeError as error:
            raise UsageError(f"standard input is not {error.encoding} text (byte {error.start})") from None
    if text is not None and not text.strip():
        raise UsageError("there is no question: give --once QUESTION, pipe one in, or start it at a terminal")
    return text


def _history(
    options: argparse.Namespace, chosen: str | None, construct: Construct | None
) -> tuple[HistoryFile | None, str | None, list[Any]]:
    """The file, the system prompt that counts, and the messages."""
    if options.history is None:
        return None, chosen, []
    from preftune.talk.history import HistoryFile

    file = HistoryFile(Path(options.history))
    system, turns = file.read()
    if system is not None and chosen is None and construct is not None:
        raise UsageError(
            f"{file.path} begins with a system prompt, and the contest has one, too: give the one to use with "
            "--system, or name another file"
        )
    return file, system if chosen is None else chosen, turns


def _open(options: argparse.Namespace, place: Place) -> tuple[Any, str]:
    from preftune.talk.opening import Loading, open_model

    kwargs: Any = {} if place.recipe is None else place.recipe.tokens.chat_template_kwargs
    if options.chat_template_kwargs is not None:
        kwargs = _mapping(options.chat_template_kwargs)
    how = Loading(
        options.device, options.dtype, options.revision, options.trust_remote_code, options.chat_template,
        {} if options.plain else kwargs, options.plain,
    )  # fmt: skip
    opened = open_model(place.path, how)
    return opened, opened.words


def _mapping(text: str) -> dict[str, Any]:
    import yaml

    from preftune.recipes.yamltext import read_value

    try:
        value = read_value(text)
    except yaml.YAMLError:
        value = None
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise UsageError(f"--chat_template_kwargs: got {text!r}; expected a mapping, as {{enable_thinking: false}}")
    return value


def _introduce(screen: Screen, talk: Talk, place: Place, words: str, style: str, *, alone: bool) -> None:
    """Which model this is, how answers are drawn, and what one should know."""
    settings = talk.settings
    if place.words or not alone:
        which = f"{place.words}: " if place.words else ""
        screen.dim(f"{which}{place.path} · {words} · window {talk.window:,} tokens")
    if talk.context_length is None and settings.context is None:
        screen.dim("the model names no context length; --context sets the window")
    if place.problem:
        screen.dim(f"the run's recipe is left aside, with its system prompt and stop strings: {place.problem}")
    if style == "chat" and place.competition is not None:
        screen.dim("this run trained on contests; --style competition asks for one and shows its answer alone")
    if talk.turns and not talk.plain:
        screen.dim(f"{len(talk.shown)} messages so far")
    if not alone:
        drawn = f"temperature {settings.temperature:g}, top-k {settings.top_k}"
        screen.dim(f"{drawn} · /help lists commands, Ctrl-C stops an answer, Ctrl-D leaves")
