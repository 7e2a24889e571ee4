"""The engine: groups → packed rows → token log-probs and entropies."""

from __future__ import annotations

from preftune.engine.forward import Engine, TokenValues
from preftune.engine.pack import Pack, pack

__all__ = ["Engine", "Pack", "TokenValues", "pack"]
