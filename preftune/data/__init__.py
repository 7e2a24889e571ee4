"""Data: sources (files, saved folders, hub ids) → rows → Examples. Imports no torch."""

from preftune.data.formats import as_prompt, as_prompts, best_of, desirable
from preftune.data.load import Loaded, SourceCount, load_examples

__all__ = ["Loaded", "SourceCount", "as_prompt", "as_prompts", "best_of", "desirable", "load_examples"]
