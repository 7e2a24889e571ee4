"""`preftune data debias`: openings that give away which answer is the better one, and the same data without them.

openings        an answer's first words: read, taken off, put in front
table           what the statistics need of every row
evidence        which openings mark a side
leftovers       openings that would mark a side once the others are gone
predict         how well the opening alone tells the better answer
counterfactual  what a reward model makes of an opening
rewrite         rows as read, with other answers
write           the rows and the decisions
training        reward models on the rows before and after
run             `debias`, the function that the command calls
page            the report
"""

from preftune.curation.debias.config import DebiasConfig
from preftune.curation.debias.run import Debiased, Finding, debias

__all__ = ["DebiasConfig", "Debiased", "Finding", "debias"]
