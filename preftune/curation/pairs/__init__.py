"""`preftune data pairs`: pairs of better and worse answers out of tiers, ranks or scores.

config    what makes a pair, and what leaves one out
read      answers by prompt: from rows that hold them, or from files that are joined
choose    the pairs of one prompt, each with what becomes of it
run       `pairs`, the function that the command calls: two passes, over rows and over pairs
page      the report
"""

from preftune.curation.pairs.config import PairsConfig
from preftune.curation.pairs.run import Pairs, pairs

__all__ = ["Pairs", "PairsConfig", "pairs"]
