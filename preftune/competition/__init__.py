"""The competition: personas that answer a question one after another inside one completion, and a judge among them.

    <competition><pirate>…</pirate><knight>…</knight><viking>…</viking>
    <result>… <winner>knight</winner></result></competition> the answer in a professional tone, which alone is shown

`Construct` is what a recipe's section `competition` describes, `parse` reads what a model wrote. Plain text alone: no
torch, no tokenizer.
"""

from preftune.competition.construct import Construct, Persona
from preftune.competition.faults import Fault, FaultKind
from preftune.competition.parse import Contest, Section, parse

__all__ = ["Construct", "Contest", "Fault", "FaultKind", "Persona", "Section", "parse"]
