"""Each objective against NumPy in float64, and the identities that hold for any logits."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from models.specs import HardLabels, Hinton, LogitDistance, SoftTargets
from worker.objectives import active, hard_labels, needs_teacher, soft_targets, total, valid_rows

Array = NDArray[np.float64]

SOFT = SoftTargets(kind="soft_targets", temperature=3.0, weight=0.7)
HARD = HardLabels(kind="hard_labels", weight=0.3)


def log_softmax(z: Array) -> Array:
    shifted = z - z.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def soft_targets_in_numpy(student: Array, teacher: Array, temperature: float) -> float:
    log_p, log_q = log_softmax(teacher / temperature), log_softmax(student / temperature)
    return float(temperature**2 * (np.exp(log_p) * (log_p - log_q)).sum())


def hard_labels_in_numpy(student: Array, targets: NDArray[np.int64]) -> float:
    rows = np.flatnonzero(targets >= 0)
    return float(-log_softmax(student)[rows, targets[rows]].sum())


@st.composite
def cases(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor]:
    """A student's and a teacher's logits (N, C) in float64, and targets (N,) of which some are -1."""
    n, c = draw(st.integers(1, 9)), draw(st.integers(2, 7))
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    scale = draw(st.sampled_from([0.01, 1.0, 5.0, 30.0]))
    student, teacher = (torch.from_numpy(generator.normal(size=(n, c)) * scale) for _ in range(2))
    return student, teacher, torch.from_numpy(generator.integers(-1, c, n))


# Importing parts of torch at the first call takes longer than hypothesis allows an example.
always = settings(deadline=None)
temperatures = st.sampled_from([0.5, 1.0, 2.0, 4.0, 20.0])


class TestSoftTargets:
    @always
    @given(cases(), temperatures)
    def test_equals_the_reference(self, case: tuple[Tensor, Tensor, Tensor], temperature: float) -> None:
        student, teacher, _ = case
        value, rows = soft_targets(student, teacher, temperature)
        expected = soft_targets_in_numpy(student.numpy(), teacher.numpy(), temperature)
        assert value.item() == pytest.approx(expected, rel=1e-9, abs=1e-9)
        assert rows == len(student)

    @always
    @given(cases(), temperatures)
    def test_student_equals_teacher_is_zero_with_no_gradient(
        self, case: tuple[Tensor, Tensor, Tensor], temperature: float
    ) -> None:
        student = case[0].clone().requires_grad_()
        value = soft_targets(student, case[0], temperature).sum
        (gradient,) = torch.autograd.grad(value, student)
        assert value.item() == 0
        assert gradient.abs().max().item() < 1e-13 * temperature

    @always
    @given(cases(), temperatures)
    def test_is_never_negative(self, case: tuple[Tensor, Tensor, Tensor], temperature: float) -> None:
        student, teacher, _ = case
        assert soft_targets(student, teacher, temperature).sum.item() >= -1e-12 * temperature**2

    @always
    @given(cases(), temperatures, st.integers(0, 2**32))
    def test_the_order_of_classes_and_rows_is_nothing(
        self, case: tuple[Tensor, Tensor, Tensor], temperature: float, seed: int
    ) -> None:
        student, teacher, _ = case
        rows, classes = (torch.from_numpy(np.random.default_rng(seed).permutation(size)) for size in student.shape)
        value = soft_targets(student, teacher, temperature).sum.item()
        mixed = soft_targets(student[rows][:, classes], teacher[rows][:, classes], temperature).sum.item()
        assert mixed == pytest.approx(value, rel=1e-9, abs=1e-12)

    @always
    @given(cases(), temperatures, st.floats(-50, 50))
    def test_a_constant_added_to_a_rows_logits_is_nothing(
        self, case: tuple[Tensor, Tensor, Tensor], temperature: float, constant: float
    ) -> None:
        student, teacher, _ = case
        value = soft_targets(student, teacher, temperature).sum.item()
        shifted = soft_targets(student + constant, teacher - constant, temperature).sum.item()
        assert shifted == pytest.approx(value, rel=1e-6, abs=1e-9 * temperature**2)

    @always
    @given(cases())
    def test_at_a_high_temperature_it_is_the_distance_of_centred_logits(
        self, case: tuple[Tensor, Tensor, Tensor]
    ) -> None:
        student, teacher, _ = case
        scale = max(1.0, student.abs().max().item(), teacher.abs().max().item())
        student, teacher = student / scale, teacher / scale
        centred = [z - z.mean(dim=1, keepdim=True) for z in (student, teacher)]
        limit = ((centred[1] - centred[0]) ** 2).sum().item() / (2 * student.shape[1])
        assert soft_targets(student, teacher, 1000.0).sum.item() == pytest.approx(limit, rel=5e-3, abs=1e-8)

    def test_is_right_in_float32_at_a_high_temperature_too(self) -> None:
        generator = np.random.default_rng(0)
        student, teacher = generator.normal(size=(2, 8, 3))
        value = soft_targets(torch.tensor(student).float(), torch.tensor(teacher).float(), 1000.0).sum
        assert value.dtype == torch.float32
        assert value.item() == pytest.approx(soft_targets_in_numpy(student, teacher, 1000.0), rel=1e-4)

    def test_the_size_of_the_gradient_hardly_depends_on_the_temperature(self) -> None:
        generator = np.random.default_rng(1)
        student, teacher = (torch.from_numpy(generator.normal(size=(64, 5))) for _ in range(2))

        def size(temperature: float) -> float:
            leaf = student.clone().requires_grad_()
            (gradient,) = torch.autograd.grad(soft_targets(leaf, teacher, temperature).sum, leaf)
            return gradient.norm().item()

        sizes = [size(temperature) for temperature in (1.0, 2.0, 4.0, 16.0, 256.0)]
        assert max(sizes) / min(sizes) < 2

    def test_no_gradient_goes_to_the_teacher(self) -> None:
        student, teacher = torch.randn(2, 3, requires_grad=True), torch.randn(2, 3, requires_grad=True)
        soft_targets(student, teacher, 2.0).sum.backward()
        assert teacher.grad is None
        assert student.grad is not None

    def test_bf16_logits_are_summed_in_float32(self) -> None:
        student, teacher = torch.randn(4, 3).bfloat16(), torch.randn(4, 3)
        expected = soft_targets_in_numpy(student.double().numpy(), teacher.double().numpy(), 2.0)
        value = soft_targets(student, teacher, 2.0).sum
        assert value.dtype == torch.float32
        assert value.item() == pytest.approx(expected, rel=1e-5)

    def test_logits_far_apart_stay_finite(self) -> None:
        value = soft_targets(torch.tensor([[1e4, -1e4]]), torch.tensor([[-1e4, 1e4]]), 1.0).sum
        assert value.item() == pytest.approx(2e4)


class TestHardLabels:
    @always
    @given(cases())
    def test_equals_the_reference_and_leaves_out_rows_without_a_label(
        self, case: tuple[Tensor, Tensor, Tensor]
    ) -> None:
        student, _, targets = case
        value, rows = hard_labels(student, targets)
        assert value.item() == pytest.approx(hard_labels_in_numpy(student.numpy(), targets.numpy()), rel=1e-9, abs=1e-9)
        assert int(rows) == int((targets >= 0).sum())

    @always
    @given(cases())
    def test_a_row_without_a_label_carries_no_gradient(self, case: tuple[Tensor, Tensor, Tensor]) -> None:
        student, _, targets = case
        leaf = student.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(hard_labels(leaf, targets).sum, leaf)
        assert not gradient[targets < 0].any()

    @always
    @given(cases(), st.integers(0, 2**32))
    def test_the_order_of_classes_is_nothing(self, case: tuple[Tensor, Tensor, Tensor], seed: int) -> None:
        student, _, targets = case
        order = torch.from_numpy(np.random.default_rng(seed).permutation(student.shape[1]))
        renamed = torch.where(targets < 0, targets, order.argsort()[targets.clamp(min=0)])
        value = hard_labels(student, targets).sum.item()
        assert hard_labels(student[:, order], renamed).sum.item() == pytest.approx(value, rel=1e-9, abs=1e-12)

    def test_no_labelled_row_at_all_is_zero_and_not_nan(self) -> None:
        student = torch.randn(3, 2, requires_grad=True)
        terms = total([HARD], student, None, torch.full((3,), -1))
        terms.loss().backward()
        assert terms.loss().item() == 0
        assert student.grad is not None
        assert not student.grad.any()


class TestTotal:
    @always
    @given(cases(), st.integers(1, 5), st.integers(0, 2**32))
    def test_micro_batches_add_up_to_one_batch(
        self, case: tuple[Tensor, Tensor, Tensor], parts: int, seed: int
    ) -> None:
        student, teacher, targets = case
        whole = student.clone().requires_grad_()
        expected = total([SOFT, HARD], whole, teacher, targets).loss()
        expected.backward()
        counts = valid_rows([SOFT, HARD], targets)
        order = torch.from_numpy(np.random.default_rng(seed).permutation(len(student)))
        leaf, value = student.clone().requires_grad_(), 0.0
        for rows in order.chunk(parts):
            part = total([SOFT, HARD], leaf[rows], teacher[rows], targets[rows]).loss(counts)
            part.backward()
            value += part.item()
        assert value == pytest.approx(expected.item(), rel=1e-9, abs=1e-12)
        torch.testing.assert_close(leaf.grad, whole.grad, rtol=1e-9, atol=1e-12)

    @always
    @given(cases())
    def test_is_the_weighted_sum_of_means_over_valid_rows(self, case: tuple[Tensor, Tensor, Tensor]) -> None:
        student, teacher, targets = case
        labelled = max(1, int((targets >= 0).sum()))
        expected = 0.7 * soft_targets_in_numpy(student.numpy(), teacher.numpy(), 3.0) / len(student)
        expected += 0.3 * hard_labels_in_numpy(student.numpy(), targets.numpy()) / labelled
        assert total([SOFT, HARD], student, teacher, targets).loss().item() == pytest.approx(
            expected, rel=1e-9, abs=1e-9
        )

    @always
    @given(cases())
    def test_the_counts_known_beforehand_are_those_found(self, case: tuple[Tensor, Tensor, Tensor]) -> None:
        student, teacher, targets = case
        found = total([SOFT, HARD], student, teacher, targets).counts
        assert tuple(int(count) for count in found) == valid_rows([SOFT, HARD], targets)

    @always
    @given(cases(), st.sampled_from([0.0, 0.25, 1.0]), temperatures)
    def test_hinton_is_the_classic_pair(
        self, case: tuple[Tensor, Tensor, Tensor], alpha: float, temperature: float
    ) -> None:
        student, teacher, _ = case
        targets = torch.zeros(len(student), dtype=torch.int64)
        objectives = Hinton(preset="hinton", temperature=temperature, alpha=alpha).objectives()
        kl = soft_targets_in_numpy(student.numpy(), teacher.numpy(), temperature) / len(student)
        cross_entropy = hard_labels_in_numpy(student.numpy(), targets.numpy()) / len(student)
        value = total(objectives, student, teacher, targets).loss().item()
        assert value == pytest.approx(alpha * kl + (1 - alpha) * cross_entropy, rel=1e-9, abs=1e-9)

    def test_a_weight_of_zero_asks_for_no_teacher(self) -> None:
        objectives = Hinton(preset="hinton", alpha=0.0).objectives()
        assert [one.kind for one in active(objectives) if not isinstance(one, LogitDistance)] == ["hard_labels"]
        assert not needs_teacher(objectives)
        assert needs_teacher([SOFT])

    def test_soft_targets_without_a_teacher_are_a_mistake(self) -> None:
        with pytest.raises(ValueError, match="teacher"):
            total([SOFT], torch.zeros(1, 2), None, torch.zeros(1, dtype=torch.int64))

    @pytest.mark.parametrize(
        "use",
        [
            lambda reserved: total([reserved], torch.zeros(1, 2), torch.zeros(1, 2), torch.zeros(1, dtype=torch.int64)),
            lambda reserved: valid_rows([reserved], torch.zeros(1, dtype=torch.int64)),
            lambda reserved: active([reserved]),
        ],
    )
    def test_a_reserved_kind_is_never_ignored(self, use: Callable[[LogitDistance], object]) -> None:
        with pytest.raises(NotImplementedError):
            use(LogitDistance.model_construct(kind="logit_distance"))


def test_the_reference_itself_on_paper() -> None:
    """ln 2 against ln(1 + e): the two rows that one can do by hand."""
    assert hard_labels_in_numpy(np.zeros((1, 2)), np.array([0])) == pytest.approx(math.log(2))
    value = soft_targets_in_numpy(np.array([[0.0, 0.0]]), np.array([[math.log(3), 0.0]]), 1.0)
    assert value == pytest.approx(0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5))
