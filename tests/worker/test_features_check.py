"""What the preflight of feature objectives refuses, with which code, and where it points."""

from collections.abc import Callable

import pytest
from transformers import PreTrainedModel

from models.errors import JobFailure
from models.specs import AttentionScores, AttentionTransfer, FeatureObjective, HiddenStates, Relations
from tests.worker.test_features import AVERAGED, EMBEDDINGS, MSE, RELATIONS, SCORES, TRANSFER, bert
from worker.features import check


def refusal(
    objective: FeatureObjective, student: Callable[[], PreTrainedModel], teacher: Callable[[], PreTrainedModel]
) -> JobFailure:
    with pytest.raises(JobFailure) as failure:
        check([MSE_OF_ONE, objective], student(), teacher(), pointer="/objectives/{}".format)
    assert failure.value.pointer == "/objectives/1"
    assert failure.value.hint
    return failure.value


MSE_OF_ONE = HiddenStates(kind="hidden_states", layers=[(0, 0)])


@pytest.mark.parametrize(
    "objective",
    [
        HiddenStates(kind="hidden_states", layers=[(0, 0), (3, 1)]),
        HiddenStates(kind="hidden_states", layers=[(2, 5)]),
        AttentionTransfer(kind="attention_transfer", layers=[(2, 1)]),
        AttentionScores(kind="attention_scores", layers=[(0, 4)]),
        Relations(kind="relations", student_layer=2),
        Relations(kind="relations", teacher_layer=4),
    ],
)
def test_a_layer_that_is_not_there_is_refused(objective: FeatureObjective) -> None:
    failure = refusal(objective, lambda: bert(seed=0), lambda: bert(seed=1, layers=4))

    assert failure.code == "impossible_layers"


def test_the_last_layer_of_each_side_may_be_named() -> None:
    objectives = [
        HiddenStates(kind="hidden_states", layers=[(2, 4)]),
        AttentionTransfer(kind="attention_transfer", layers=[(1, 3)]),
        Relations(kind="relations", student_layer=1, teacher_layer=3),
    ]
    check(objectives, bert(seed=0), bert(seed=1, layers=4), pointer=str)


@pytest.mark.parametrize("objective", [MSE, TRANSFER, SCORES])
def test_a_student_deeper_than_its_teacher_needs_a_map(objective: FeatureObjective) -> None:
    failure = refusal(objective, lambda: bert(seed=0, layers=3), lambda: bert(seed=1))

    assert failure.code == "impossible_layers"
    assert '"layers"' in str(failure.hint)
    named = objective.model_copy(update={"layers": [(2, 1)]})
    check([named, EMBEDDINGS, RELATIONS], bert(seed=0, layers=3), bert(seed=1), pointer=str)


def test_scores_of_other_heads_are_refused_and_averaged_ones_are_not() -> None:
    failure = refusal(SCORES, lambda: bert(seed=0, heads=2), lambda: bert(seed=1))

    assert failure.code == "heads_differ"
    assert "averaged" in str(failure.hint)
    check([AVERAGED], bert(seed=0, heads=2), bert(seed=1), pointer=str)


@pytest.mark.parametrize("heads", [3, 32])
def test_relation_heads_must_divide_both_widths(heads: int) -> None:
    objective = Relations(kind="relations", heads=heads)

    failure = refusal(objective, lambda: bert(seed=0, width=16), lambda: bert(seed=1))

    assert failure.code == "impossible_heads"
    assert "divisor of 16" in str(failure.hint)
    check([Relations(kind="relations", heads=16)], bert(seed=0, width=16), bert(seed=1), pointer=str)


def test_a_family_that_is_not_known_inside_is_refused() -> None:
    teacher = bert(seed=1)
    teacher.config.model_type = "megatron-bert"
    with pytest.raises(JobFailure) as failure:
        check([TRANSFER], bert(seed=0), teacher, pointer="/objectives/{}".format)

    assert (failure.value.code, failure.value.pointer) == ("architecture_unsupported", "/objectives/0")
