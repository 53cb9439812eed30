"""One file per kind of task: how it reads rows, what it learns from, and how it scores answers.

Decoding answers is `models.runtime`'s, so that what is measured is what is served.
"""

from typing import assert_never

from models.errors import JobFailure
from models.specs import (
    QuestionAnswering,
    Task,
    Text2Text,
    TextClassification,
    TextGeneration,
    TextRegression,
    TokenClassification,
)
from worker.tasks.base import TaskKind
from worker.tasks.multi_label import MultiLabelKind
from worker.tasks.question_answering import QuestionAnsweringKind
from worker.tasks.text_classification import TextClassificationKind
from worker.tasks.text_regression import TextRegressionKind
from worker.tasks.token_classification import TokenClassificationKind

__all__ = ["TaskKind", "for_task"]


def for_task(task: Task) -> TaskKind:
    """The kind of task that `task` is of. Raises `JobFailure` (`not_available_yet`) where this version lacks it."""
    match task:
        case TextClassification():
            return MultiLabelKind(task) if task.multi_label else TextClassificationKind(task)
        case TextRegression():
            return TextRegressionKind(task)
        case TokenClassification():
            return TokenClassificationKind(task)
        case QuestionAnswering():
            return QuestionAnsweringKind(task)
        case TextGeneration() | Text2Text():
            raise JobFailure(
                f"{task.kind!r} is not available in this version",
                code="not_available_yet",
                hint="choose text-classification, text-regression, token-classification or question-answering",
                pointer="/task/kind",
            )
        case _:
            assert_never(task)
