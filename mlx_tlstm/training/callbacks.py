"""What training tells of itself while it goes on."""

from __future__ import annotations

from mlx_tlstm.training.reports import EvaluationReport, StepReport
from mlx_tlstm.training.trainer import Trainer


class Callback:
    """Base of callbacks: methods that training calls; override those that you need.

    They may ask ``trainer.model`` anything, but must not change its weights: training has its own.
    """

    def on_start(self, trainer: Trainer) -> None:
        """Called before the first step, or before the first one after a resumption.

        ``trainer.step`` says how many steps were done before.
        """

    def on_step(self, trainer: Trainer, report: StepReport) -> None:
        """Called after each step."""

    def on_note(self, text: str) -> None:
        """Called with a line of text when something happened that the user should know."""

    def on_evaluation(self, record: EvaluationReport) -> None:
        """Called after each evaluation, with the record that was added to ``metrics.jsonl``."""

    def on_end(self) -> None:
        """Called once at the end, also after an error."""
