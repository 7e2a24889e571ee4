"""Recipes: read a file or a dict, apply stages and overrides, check everything, write it out again. No torch here."""

from preftune.recipes.resolve import dump, is_plain, load_recipe, resolve

__all__ = ["dump", "is_plain", "load_recipe", "resolve"]
