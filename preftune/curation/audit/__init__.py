"""`preftune data audit`: one look at a data set before training, and whether it is fit."""

from preftune.curation.audit.checks import Check
from preftune.curation.audit.config import AuditConfig
from preftune.curation.audit.run import Audit, audit

__all__ = ["Audit", "AuditConfig", "Check", "audit"]
