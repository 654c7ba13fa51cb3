"""What goes wrong when encoders are measured."""

from codiemb_lib.core import CodiembError


class EvaluationError(CodiembError, ValueError):
    """Something cannot be scored, compared or mined, or a score came out that is none."""


class BenchmarkError(CodiembError, RuntimeError):
    """Some tasks failed; `scores` holds the rows of the others."""

    status = 1

    def __init__(self, message, scores):
        super().__init__(message)
        self.scores = scores
