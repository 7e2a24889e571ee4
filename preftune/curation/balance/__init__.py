"""`preftune data balance`: rows are embedded and clustered; large clusters are capped and small ones raised."""

from preftune.curation.balance.config import BalanceConfig
from preftune.curation.balance.run import Balanced, balance

__all__ = ["BalanceConfig", "Balanced", "balance"]
