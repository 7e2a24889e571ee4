"""`preftune human export|import|train|status`: the loop with people; `preftune human RECIPE` runs the method itself."""

from __future__ import annotations

from pathlib import Path

from preftune.cli.parser import Parser, add_recipe_flags, split_overrides
from preftune.errors import UsageError
from preftune.recipes import load_recipe
from preftune.recipes.schema import nearest

_ABOUT = """\
usage: preftune human COMMAND …        preftune human COMMAND --help tells more

  export RECIPE       begin a round: the policy answers prompts, the answers go out as files
  import ROOT FILE …  take raters' files in, check them, measure how far raters agree
  train ROOT          one step on the ratings of the newest round
  status ROOT         all rounds: rated, agreement, trained, mean score

  RECIPE              run a recipe of method human whose collect.path names rated answers; --section.field VALUE as for
                      every method

A round, from the first command to the next round's:

  preftune human export recipes/human.yaml --output runs/people
  preftune human import runs/people anna.csv ben.csv
  preftune human train runs/people
  preftune human export recipes/human.yaml --output runs/people

See docs/methods/human.md."""


def execute(arguments: list[str]) -> int:
    commands = {"export": _export, "import": _import, "train": _train, "status": _status}
    if not arguments or arguments[0] in {"-h", "--help"}:
        print(_ABOUT)
        return 0
    name, rest = arguments[0], arguments[1:]
    if name in commands:
        return commands[name](rest)
    if not name.startswith("-") and not Path(name).suffix and not Path(name).exists():
        close = nearest(name, commands)
        hint = f"did you mean preftune human {close}?" if close else f"commands: {', '.join(commands)}, or a recipe"
        raise UsageError(f"preftune human {name}: no such command; {hint}")
    from preftune.cli import run

    return run.execute(arguments, method="human")


def _export(arguments: list[str]) -> int:
    parser = Parser(
        prog="preftune human export",
        usage="preftune human export RECIPE [--output ROOT] [--section.field VALUE …]",
        description="Begins a round in ROOT/round-N: the policy answers prompts of the recipe's data, and the answers "
        "are\nwritten for raters (answers.csv, answers.jsonl, HOW_TO_RATE.md). The policy is the recipe's model, and\n"
        "from the second round on the model that the round before has trained.",
    )
    parser.add_argument("recipe", metavar="RECIPE", help="a YAML file of method human; recipes/human.yaml is one")
    add_recipe_flags(parser)
    kept, extra = split_overrides(parser, arguments)
    options = parser.parse(kept)
    pipeline = load_recipe(options.recipe, {**options.overrides, **extra}, method="human")

    from preftune.human.export import export

    exported = export(pipeline, base_dir=Path.cwd())
    round_, root = exported.round, exported.round.folder.parent
    shown, raters = len(round_.prompts), round_.human.raters
    for note in exported.notes:
        print(note)
    print(
        f"round {round_.number}: {len(round_.answers)} answers to {shown} prompts, by {round_.recipe.model.path}\n"
        f"give raters {round_.folder / 'answers.csv'} (or answers.jsonl) and {round_.folder / 'HOW_TO_RATE.md'}\n"
        f"ratings wanted for each answer: {raters} (human.raters)\n"
        f"take them in with: preftune human import {root} FILE …"
    )
    return 0


def _import(arguments: list[str]) -> int:
    parser = Parser(
        prog="preftune human import",
        usage="preftune human import ROOT FILE [FILE …] [--partial] [--replace] [--train]",
        description="Checks raters' files (.csv or .jsonl) against the newest round, tells everything that is wrong "
        "with them,\nand keeps their ratings when nothing is. Further files may follow later.",
    )
    parser.add_argument("root", type=Path, metavar="ROOT", help="the folder with the rounds")
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE", help="one or several raters' files")
    parser.add_argument(
        "--partial",
        action="store_true",
        help="take in files with holes; prompts that a rater has not rated wholly do not count for him; with --train, "
        "prompts with fewer raters than human.raters are trained on too",
    )
    parser.add_argument(
        "--replace", action="store_true", help="these files' raters gave other ratings before: those are removed"
    )
    parser.add_argument("--train", action="store_true", help="then train, as `preftune human train ROOT` does")
    options = parser.parse(arguments)

    from preftune.human.agreement import words
    from preftune.human.take import take

    taken = take(options.root, options.files, partial=options.partial, renew=options.replace)
    checked, round_ = taken.checked, taken.round
    known = f", {checked.known} were there before" if checked.known else ""
    replaced = f", {checked.replaced} earlier ones replaced" if checked.replaced else ""
    print(f"round {round_.number}: {checked.new} new ratings{known}{replaced}; {len(checked.ratings)} in all")
    for note in checked.notes:
        print(note)
    for rater, prompts in checked.left_out.items():
        print(
            f"{rater} has not rated {len(prompts)} of {len(round_.prompts)} prompts wholly, and does not count there: "
            f"{', '.join(map(str, prompts))}"
        )
    print("\n".join(words(taken.agreement)))
    if options.train:
        return _learn(options.root, resume=False, partial=options.partial)
    if taken.wanting:
        print(
            f"{taken.wanting} of {len(round_.prompts)} prompts wait for more raters (human.raters "
            f"{round_.human.raters}): import further files"
        )
    else:
        print(f"all prompts are rated; train with: preftune human train {options.root}")
    return 0


def _train(arguments: list[str]) -> int:
    parser = Parser(
        prog="preftune human train",
        usage="preftune human train ROOT [--partial] [--resume]",
        description="Trains the newest round's policy on its ratings, into ROOT/round-N/train, as ROOT/round-N/"
        "recipe.yaml says.",
    )
    parser.add_argument("root", type=Path, metavar="ROOT", help="the folder with the rounds")
    parser.add_argument(
        "--partial",
        action="store_true",
        help="train although some prompts have fewer raters than human.raters; those without any are left out",
    )
    parser.add_argument(
        "--resume", action="store_true", help="go on from the newest checkpoint of a training that stopped"
    )
    options = parser.parse(arguments)
    return _learn(options.root, resume=options.resume, partial=options.partial)


def _learn(root: Path, *, resume: bool, partial: bool) -> int:
    from preftune.human.learn import learn

    round_, final = learn(root, resume=resume, partial=partial, base_dir=Path.cwd())
    print(
        f"round {round_.number} is trained: {final}\n"
        f"next round: preftune human export RECIPE --output {root}\nall rounds: preftune human status {root}"
    )
    return 0


def _status(arguments: list[str]) -> int:
    parser = Parser(
        prog="preftune human status",
        usage="preftune human status ROOT",
        description="Prints one line per round.",
    )
    parser.add_argument("root", type=Path, metavar="ROOT", help="the folder with the rounds")
    options = parser.parse(arguments)

    from preftune.human.status import status, words

    rounds = status(options.root)
    print("\n".join(words(rounds)) if rounds else f"{options.root}: no round yet")
    return 0
