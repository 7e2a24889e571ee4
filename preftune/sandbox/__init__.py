"""Running a program that nobody has read, behind every layer of isolation that the machine has.

Knows nothing of rewards. Standard library only. docs/code-reward.md says what is isolated and what is not.
"""

from preftune.sandbox.pool import Sandboxes
from preftune.sandbox.probe import available, describe
from preftune.sandbox.records import Job, Layers, Limits, Outcome, Result, SandboxError

__all__ = ["Job", "Layers", "Limits", "Outcome", "Result", "SandboxError", "Sandboxes", "available", "describe"]
