"""`preftune diagnose`: does this model, on these prompts, need preference tuning?

draw        which prompts are looked at
answers     the model's answers, and how likely it finds them and the data's own
classifier  whether a text classifier fires on them
form        off-format, empty, cut, repeated, in another language, refusing
spread      how different the answers to one prompt are, and how likely
closeness   how close an answer is to its own context, beside others' contexts
use         the score in use, beside a benchmark's
verdict     what follows
run         `diagnose`, the function that the command calls
page        the report
"""

from preftune.curation.diagnose.config import DiagnoseConfig
from preftune.curation.diagnose.run import Diagnosis, diagnose

__all__ = ["DiagnoseConfig", "Diagnosis", "diagnose"]
