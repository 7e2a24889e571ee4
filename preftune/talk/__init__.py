"""Talking with a model: what `preftune chat` does, and what a program of yours can do through `Talk`.

    place.py         which model a name or a run folder stands for, and what its recipe says about its use
    opening.py       the model loaded as training loads it, with its token contract and sampler
    construct.py     the contest of `--style competition`
    settings.py      how answers are drawn;  roles.py  ready-made system prompts
    conversation.py  one talk: what the model is shown, asked and has said
    answer.py        one answer: its token budget, how it comes about, what became of it
    stream.py        whole characters out of tokens, stop strings never seen
    contest.py       a contest while it is written, and what of it is shown
    history.py       messages in a JSONL file that is never left half-written
    terminal.py      what the user sees, with control characters made harmless
    commands.py      the loop and its /commands

Nothing here loads torch but `opening`.
"""

from preftune.talk.answer import Answer, Budget, Listener, TooLong
from preftune.talk.conversation import Talk
from preftune.talk.history import Turn
from preftune.talk.settings import TalkConfig

__all__ = ["Answer", "Budget", "Listener", "Talk", "TalkConfig", "TooLong", "Turn"]
