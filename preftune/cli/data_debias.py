"""`preftune data debias`: openings that give the label away, and the data without them."""

from __future__ import annotations

from pathlib import Path

from preftune.cli.model_flags import add_settings, read_settings
from preftune.cli.parser import Parser

_ABOUT = """\
Finds openings ("Sure,", "Absolutely!") that mark the better or the worse answer of pairs, proposes those to strip with
the evidence for each, and writes the data without them: rows.jsonl (in the input's own form), decisions.jsonl (what was
taken off every row), summary.json and report.html. See docs/curation-debias.md.

  preftune data debias --data.path pairs.jsonl --output debiased
  preftune data debias --data.path pairs.jsonl --output debiased --reward_model runs/reward/final
  preftune data debias --data.path pairs.jsonl --output debiased --strip '["Sure,", "Yes,"]'

With a model it trains reward models on the rows before and after, and says how right each is on held-out rows and on
your own policy's outputs:

  preftune data debias --data.path pairs.jsonl --output debiased --model.path M --train.epochs 1 \\
      --train.learning_rate 1e-4 --model.lora.r 16 --policy_outputs own.jsonl --loss.p_max 0.95
"""


def execute(arguments: list[str]) -> int:
    from preftune.curation.debias.config import UNREAD, DebiasConfig

    parser = Parser(
        prog="preftune data debias",
        usage="preftune data debias --data.path X --output FOLDER [--setting VALUE …]",
        description=_ABOUT,
    )
    parser.add_argument("--output", required=True, metavar="FOLDER", help="new folder for the result")
    add_settings(parser, DebiasConfig, UNREAD)
    config, rest = read_settings(parser, arguments, DebiasConfig, UNREAD)

    from preftune.curation.debias import debias
    from preftune.curation.folder import REPORT
    from preftune.talk.visible import visible

    found = debias(config, Path(rest.output))
    print(visible(str(found)))
    print(f"report: {found.folder / REPORT}")
    return 0
