"""What a training step and an evaluation report, and which of two evaluations is better."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

#: The figures of one evaluation by name, as a line of ``metrics.jsonl`` has them.
EvaluationReport = dict[str, Any]


class StepReport(NamedTuple):
    """What a step measured before it changed the weights.

    Attributes:
        loss: Mean negative log-likelihood in nats over loss positions and batch: Eq. 30 divided
            by the number of positions.
        gradient_norm: Global norm of its gradient before clipping.
        clipped: Whether the gradient was clipped.
    """

    loss: float
    gradient_norm: float
    clipped: bool


@dataclasses.dataclass
class StepTotals:
    """Sums of the reports of all steps since the last evaluation."""

    steps: int = 0
    loss: float = 0.0
    gradient_norm: float = 0.0
    clipped: int = 0

    def add(self, report: StepReport) -> None:
        """Count a step."""
        self.steps += 1
        self.loss += report.loss
        self.gradient_norm += report.gradient_norm
        self.clipped += report.clipped

    def means(self) -> dict[str, float]:
        """Mean loss and gradient norm, and the share of steps that were clipped."""
        return {
            "loss": self.loss / self.steps,
            "gradient_norm": self.gradient_norm / self.steps,
            "clip_rate": self.clipped / self.steps,
        }


def better(metric: str, value: float, other: float) -> bool:
    """Whether a value of a metric beats another: higher accuracy, fewer bits per character."""
    return value < other if metric == "bpc" else value > other


def best_of(metric: str, reports: Sequence[EvaluationReport]) -> EvaluationReport | None:
    """The report with the best value of a metric, of equal ones the first; ``None`` without any."""
    choose = min if metric == "bpc" else max
    return choose(reports, key=lambda report: report[metric], default=None)
