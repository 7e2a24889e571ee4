"""`preftune data generate`: answers of several tiers to each prompt.

config    the tiers, and how each answers
prompts   the data, read again and again without being kept
journal   every answer and every failure, on disk before the next one
limit     requests and tokens per minute
remote    a tier behind an endpoint
local     a tier in this process
assemble  rows, decisions and counts out of the journal
page      the report
run       `generate`, the function that the command calls
"""

from preftune.curation.generate.config import DrawConfig, EndpointConfig, GenerateConfig, LocalConfig, TierConfig
from preftune.curation.generate.run import Generated, generate

__all__ = ["DrawConfig", "EndpointConfig", "GenerateConfig", "Generated", "LocalConfig", "TierConfig", "generate"]
