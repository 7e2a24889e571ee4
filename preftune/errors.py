"""The errors a user can meet. Each message says what was wrong, where, and what to do.

The command line turns `UsageError` into exit code 2 and every other `PreftuneError` into exit
code 1, printing the message alone; any other exception is a defect of ours and keeps its traceback.
"""

from __future__ import annotations


class PreftuneError(Exception):
    """Base of all errors meant for the user. Exit code 1."""

    exit_code = 1


class UsageError(PreftuneError):
    """The request itself is wrong: an unknown flag, a bad recipe, a folder that exists. Exit code 2."""

    exit_code = 2


class DataError(PreftuneError):
    """A data file or row can't be used. The message names file, line and field. Exit code 2."""

    exit_code = 2


class ModelError(PreftuneError):
    """A model or tokenizer can't be loaded or used as asked. Exit code 2."""

    exit_code = 2


class RewardError(PreftuneError):
    """A reward failed on a row: raised, hung, crashed, or returned something that is no score. Exit code 1."""


class SamplingError(PreftuneError):
    """Completions could not be drawn: an endpoint failed for good, a prompt does not fit. Exit code 1."""


class CheckpointError(PreftuneError):
    """A checkpoint can't be written or read. Exit code 1."""


class CertificateError(PreftuneError):
    """A run's own numeric self-check went over its tolerance. Exit code 1."""
