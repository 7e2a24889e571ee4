"""`preftune run RECIPE`, and `preftune METHOD [RECIPE]` for a recipe of that method."""

from __future__ import annotations

from pathlib import Path

from preftune.cli.parser import Parser, add_recipe_flags, split_overrides
from preftune.config import Pipeline
from preftune.errors import UsageError
from preftune.recipes import load_recipe, resolve

_NOTES = """\
Every field of the recipe is a flag, and a flag goes over the recipe:
  --train.steps 50            in a recipe with stages: for every stage
  --sft.train.steps 50        for the stage named sft
  --data.path FILE            where there is one source; --data.1.path FILE for the second of several
  --data.columns.prompt.from question, --rewards.0.args.tolerance 0.1
  --model.lora '{r: 8}'       whole sections and lists are YAML; null takes a section away
"""


def execute(arguments: list[str], method: str | None = None) -> int:
    """Runs a recipe. With `method`, one that ends in that method."""
    parser = _parser(method)
    kept, extra = split_overrides(parser, arguments)
    options = parser.parse(kept)
    overrides = {**options.overrides, **extra}
    pipeline = _pipeline(options.recipe, overrides, method)
    folder = Path(pipeline.output or Path("runs") / pipeline.name)
    resume = options.resume == "yes" or (options.resume == "auto" and folder.exists())

    from preftune.pipeline import run_pipeline

    # relative paths start where the command was given, for recipes as for flags: the recipe.yaml that a run writes
    # into its folder then means the same as the one it came from
    run_pipeline(pipeline, resume=resume, dry_run=options.dry_run, base_dir=Path.cwd())
    return 0


def _parser(method: str | None) -> Parser:
    parser = Parser(
        prog=f"preftune {method or 'run'}",
        usage=f"preftune {method or 'run'} {'[RECIPE]' if method else 'RECIPE'} [--section.field VALUE …]",
        description=f"Runs a recipe{f' for {method}' if method else ''} into a new run folder.\n\n{_NOTES}",
    )
    parser.add_argument("recipe", nargs="?", metavar="RECIPE", help="a YAML file; `preftune init` prints one")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="load everything, show token counts, memory and the first batch; train nothing",
    )
    parser.add_argument(
        "--resume",
        nargs="?",
        const="yes",
        default="no",
        choices=("yes", "no", "auto"),
        help="go on from the newest checkpoint; auto: start afresh where there is no run yet",
    )
    add_recipe_flags(parser)
    return parser


def _pipeline(recipe: str | None, overrides: dict[str, str], method: str | None) -> Pipeline:
    command = f"preftune {method or 'run'}"
    if recipe is None:
        if not overrides:
            raise UsageError(f"{command}: name a recipe; `preftune init {method or 'grpo'} > recipe.yaml` writes one")
        pipeline = resolve({"method": method} if method else {}, overrides, name=command)
    else:
        pipeline = load_recipe(recipe, overrides, method=method)
    ends_in = pipeline.stages[-1].method
    if method is not None and ends_in != method:
        given = recipe or "what the flags say"
        raise UsageError(
            f"{given} is a recipe for {ends_in}, not for {method}; use preftune run {recipe}"
            if recipe
            else f"{given} is for {ends_in}, not for {method}; use preftune {ends_in}"
        )
    return pipeline
