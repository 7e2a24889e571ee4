"""Knights and knaves: statements, their solver, a generator of puzzles with one solution, and their English.

Knights always say what is true, knaves always what is false. Imports the standard library only.
"""

from preftune.logic.generate import generate
from preftune.logic.puzzles import Puzzle, Said, sayings_from_json
from preftune.logic.words import Text, render

__all__ = ["Puzzle", "Said", "Text", "generate", "render", "sayings_from_json"]
