"""A student that answers when it is sure, and its teacher when it is not: what the two reach together.

For one label of several. The thresholds are chosen on the validation rows and shown on the test rows, so that what is
read there was not chosen there (selective prediction, El-Yaniv 2010; Geifman 2017, arXiv:1705.08500).

`report.json`, `cascade`, null where there is none:

    rows           how many validation and test rows there are
    thresholds     ascending; each with `threshold`, and of the validation rows `coverage`, the share that the student
                   answers, `accuracy` and `agreement` of both networks together, with their one-sided Clopper-Pearson
                   lower bounds; `test` has the first three of the test rows

Knows no network or file. N rows, C labels.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from worker.statistics import CONFIDENCE, Floats, Logits, agreement_bound

_STEPS = 20


@dataclass(frozen=True)
class Answered:
    """What both networks say of N rows, raw logits (N, C), and what is true."""

    teacher: Logits
    student: Logits
    truth: NDArray[np.int64]
    """(N,), -1 for a row without a label."""

    def __len__(self) -> int:
        return len(self.truth)


def cascade(validation: Answered, test: Answered, *, confidence: float = CONFIDENCE) -> dict[str, Any] | None:
    """The table of thresholds; None where the teacher did not answer every row, or the student none.

    A threshold is a quantile of the student's sureness on the validation rows, from its minimum, where it answers all
    of them, in steps of 5 % of the rows. Accuracy is None where a row has no label.
    """
    if not all(len(side) and np.isfinite(side.teacher).all() for side in (validation, test)):
        return None
    sure = sureness(validation.student)
    if not sure.any():
        return None
    thresholds = np.unique(np.quantile(sure[sure > 0], np.arange(_STEPS) / _STEPS, method="higher"))
    return {
        "rows": {"validation": len(validation), "test": len(test)},
        "thresholds": [
            {
                "threshold": float(threshold),
                **_bounded(validation, float(threshold), confidence),
                "test": _together(test, float(threshold)),
            }
            for threshold in thresholds
        ],
    }


def sureness(logits: Logits) -> Floats:
    """The highest probability that a softmax makes of each row, (N,); 0 where a logit is not finite."""
    finite = np.isfinite(logits).all(axis=1)
    found = np.zeros(len(logits))
    found[finite] = softmax(logits[finite].astype(np.float64), axis=1).max(axis=1)
    return found


def _bounded(side: Answered, threshold: float, confidence: float) -> dict[str, float | None]:
    found = _together(side, threshold)

    def bound(share: float | None) -> float | None:
        # A share of N rows is a count of them again.
        return None if share is None else agreement_bound(round(share * len(side)), len(side), confidence=confidence)

    return {
        "coverage": found["coverage"],
        "accuracy": found["accuracy"],
        "accuracy_lower_bound": bound(found["accuracy"]),
        "agreement": found["agreement"],
        "agreement_lower_bound": bound(found["agreement"]),
    }


def _together(side: Answered, threshold: float) -> dict[str, float | None]:
    """Coverage, accuracy and agreement of the student where it is at least so sure, and of the teacher elsewhere."""
    covered = sureness(side.student) >= threshold
    teacher = side.teacher.argmax(axis=1)
    answers = np.where(covered, side.student.argmax(axis=1), teacher)
    labelled = (side.truth >= 0).all()
    return {
        "coverage": float(covered.mean()),
        "accuracy": float((answers == side.truth).mean()) if labelled else None,
        "agreement": float((answers == teacher).mean()),
    }
