"""Reports: one self-contained HTML file and one model card per run, made from the run folder's files alone."""

from preftune.report.card import write_model_card
from preftune.report.html import write_report
from preftune.report.rounds import write_rounds

__all__ = ["write_model_card", "write_report", "write_rounds"]
