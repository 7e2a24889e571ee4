"""A multi-turn rollout with a tool of your own: the policy asks for a price and goes on with the answer.

    sampling:
      rollout: examples/lookup_tool.py:prices
      max_turns: 3

A rollout is named by a factory, which gets the token contract and returns the rollout. What the tool answers becomes
part of the completion as context: no loss, no log-probs, no entropy, not counted in lengths (docs/sampling.md).
"""

from __future__ import annotations

from preftune.sampling.rollouts import ToolRollout
from preftune.tokens import TokenContract

PRICES = {"tea": 2, "cake": 4, "soup": 6}


def look_up(text: str) -> str:
    """The tool. It gets what the policy wrote into the call, and must answer whatever that is."""
    return str(PRICES.get(text.strip(), "unknown"))


def prices(contract: TokenContract) -> ToolRollout:
    """`price(tea)` is answered by `=2;`."""
    return ToolRollout(contract, look_up, opening="price(", closing=")", answer="={};")
