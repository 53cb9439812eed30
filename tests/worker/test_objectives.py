"""Each objective against NumPy in float64, and the identities that hold for any logits."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from models.specs import HardLabels, Hinton, LogitDistance, Relations, SoftTargets, TextClassification
from worker.objectives import (
    NOWHERE,
    Heard,
    Nature,
    Terms,
    active,
    features,
    needs_teacher,
    outputs,
    total,
    valid_rows,
    weight,
)

Array = NDArray[np.float64]

TASK = TextClassification(kind="text-classification", text="text", label="label")
HARD = HardLabels(kind="hard_labels", weight=0.3)
SOFT = SoftTargets(kind="soft_targets", temperature=3.0, weight=0.7)
DISTANCE = LogitDistance(kind="logit_distance", weight=0.2)
RELATIONS = Relations(kind="relations")


def soft(divergence: Any = "forward_kl", temperature: float = 1.0, beta: float = 0.5) -> SoftTargets:
    return SoftTargets(kind="soft_targets", divergence=divergence, temperature=temperature, beta=beta)


DIVERGENCES = [soft("forward_kl"), soft("reverse_kl"), *(soft("jsd", beta=beta) for beta in (0, 0.2, 0.5, 1))]


# --- references -------------------------------------------------------------------------------------------------------


def probabilities(z: Array, nature: Nature) -> Array:
    """(…, C), or (…, C, 2) of yes and no."""
    if nature == "any_of":
        return np.stack([1 / (1 + np.exp(-z)), 1 / (1 + np.exp(z))], -1)
    powers = np.exp(z - z.max(-1, keepdims=True))
    found: Array = powers / powers.sum(-1, keepdims=True)
    return found


def kl(p: Array, q: Array) -> float:
    return float((p * (np.log(p) - np.log(q))).sum())


def divergence(p: Array, q: Array, objective: SoftTargets) -> float:
    beta = {"forward_kl": 0.0, "reverse_kl": 1.0, "jsd": objective.beta}[objective.divergence]
    if beta in (0, 1):
        return kl(p, q) if beta == 0 else kl(q, p)
    middle = beta * p + (1 - beta) * q
    return beta * kl(p, middle) + (1 - beta) * kl(q, middle)


def soft_in_numpy(student: Array, teachers: Array, weights: Array, case: "Case", objective: SoftTargets) -> float:
    shares = weights / weights.sum()
    t = objective.temperature
    if case.combine == "logits":
        p = probabilities(np.tensordot(shares, teachers, 1) / t, case.nature)
    else:
        p = np.tensordot(shares, probabilities(teachers / t, case.nature), 1)
    return t**2 * divergence(p, probabilities(student / t, case.nature), objective)


def hard_in_numpy(student: Array, targets: NDArray[Any], nature: Nature) -> float:
    if nature == "number":
        return float(np.nansum((student[:, 0] - targets) ** 2))
    if nature == "any_of":
        yes, no = np.moveaxis(probabilities(student, nature), -1, 0)
        return float(-np.nansum(targets * np.log(yes) + (1 - targets) * np.log(no)))
    rows = np.flatnonzero(targets >= 0)
    return float(-np.log(probabilities(student, nature)[rows, targets[rows]]).sum())


# --- cases ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """Logits of a student (M, C) and of teachers (K, M, C), and targets; some rows are unknown or not valid."""

    nature: Nature
    student: Tensor
    heard: Heard
    targets: Tensor
    valid: Tensor

    @property
    def combine(self) -> str:
        return self.heard.combine

    @property
    def known(self) -> Tensor:
        return self.valid & ~self.heard.logits.isnan().any(-1).any(0)

    def terms(self, *objectives: Any, **changed: Any) -> Terms:
        one = replace(self, **changed)
        return total(objectives, one.student, one.heard, one.targets, nature=one.nature, valid=one.valid)

    def value(self, objective: Any, **changed: Any) -> float:
        return float(self.terms(objective, **changed).sums[0])

    def rows(self, chosen: Tensor) -> "Case":
        heard = replace(self.heard, logits=self.heard.logits[:, chosen])
        return Case(self.nature, self.student[chosen], heard, self.targets[chosen], self.valid[chosen])


@st.composite
def cases(draw: st.DrawFn, natures: tuple[Nature, ...] = ("one_of", "any_of"), teachers: int = 3) -> Case:
    nature = draw(st.sampled_from(natures))
    m, k = draw(st.integers(1, 7)), draw(st.integers(1, teachers))
    c = 1 if nature == "number" else draw(st.integers(2, 5))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    scale = draw(st.sampled_from([0.01, 1.0, 8.0]))
    logits = random.normal(size=(k, m, c)) * scale
    logits[random.random((k, m)) < 0.1] = np.nan
    targets: NDArray[Any] = random.integers(-1, c, m)
    if nature != "one_of":
        targets = random.integers(0, 2, (m, c)).astype(float) if nature == "any_of" else random.normal(size=m)
        targets[random.random(m) < 0.2] = np.nan
    combine: Any = "logits" if nature == "number" else draw(st.sampled_from(["probabilities", "logits"]))
    heard = Heard(torch.from_numpy(logits), tuple((random.random(k) + 0.1).tolist()), combine)
    student = torch.from_numpy(random.normal(size=(m, c)) * scale)
    return Case(nature, student, heard, torch.from_numpy(targets), torch.from_numpy(random.random(m) < 0.8))


# Importing parts of torch at the first call takes longer than hypothesis allows an example.
always = settings(deadline=None, max_examples=25)
temperatures = st.sampled_from([0.5, 1.0, 2.0, 20.0])
divergences = st.sampled_from(DIVERGENCES)
everything: tuple[Nature, ...] = ("one_of", "any_of", "number")


def gradient_of(case: Case, objective: Any, **changed: Any) -> Tensor:
    student = changed.pop("student", case.student).clone().requires_grad_()
    return torch.autograd.grad(case.terms(objective, student=student, **changed).sums[0], student)[0]


# --- one objective ----------------------------------------------------------------------------------------------------


class TestReference:
    @always
    @given(cases(), divergences, temperatures)
    def test_of_soft_targets(self, case: Case, objective: SoftTargets, temperature: float) -> None:
        objective = objective.model_copy(update={"temperature": temperature})
        rows = case.known.numpy()
        student, teachers = case.student.numpy()[rows], case.heard.logits.numpy()[:, rows]
        expected = soft_in_numpy(student, teachers, np.array(case.heard.weights), case, objective)
        assert case.value(objective) == pytest.approx(expected, rel=1e-8, abs=1e-9)
        assert int(case.terms(objective).counts[0]) == rows.sum()

    @always
    @given(cases(everything))
    def test_of_hard_labels(self, case: Case) -> None:
        rows = case.valid.numpy()
        expected = hard_in_numpy(case.student.numpy()[rows], case.targets.numpy()[rows], case.nature)
        assert case.value(HARD) == pytest.approx(expected, rel=1e-9, abs=1e-12)

    @always
    @given(cases(everything))
    def test_of_the_logit_distance(self, case: Case) -> None:
        heard = replace(case.heard, combine="logits")
        shares = np.array(heard.weights) / sum(heard.weights)
        difference = case.student.numpy() - np.tensordot(shares, heard.logits.numpy(), 1)
        expected = 0.5 * float((difference[case.known.numpy()] ** 2).sum())
        assert case.value(DISTANCE, heard=heard) == pytest.approx(expected, rel=1e-9, abs=1e-12)

    def test_itself_on_paper(self) -> None:
        assert hard_in_numpy(np.zeros((1, 2)), np.array([0]), "one_of") == pytest.approx(np.log(2))
        assert hard_in_numpy(np.zeros((1, 3)), np.array([[0.0, 1, 1]]), "any_of") == pytest.approx(3 * np.log(2))
        value = divergence(np.array([0.75, 0.25]), np.array([0.5, 0.5]), soft())
        assert value == pytest.approx(0.75 * np.log(1.5) + 0.25 * np.log(0.5))


class TestSoftTargets:
    @always
    @given(cases(teachers=1), divergences, temperatures)
    def test_student_equals_teacher_is_zero_with_no_gradient(
        self, case: Case, objective: SoftTargets, temperature: float
    ) -> None:
        objective = objective.model_copy(update={"temperature": temperature})
        student = case.heard.logits[0]
        assert case.value(objective, student=student) == pytest.approx(0, abs=1e-13 * temperature**2)
        assert gradient_of(case, objective, student=student).abs().max() < 1e-13 * temperature

    @always
    @given(cases(), divergences, temperatures)
    def test_is_never_negative(self, case: Case, objective: SoftTargets, temperature: float) -> None:
        objective = objective.model_copy(update={"temperature": temperature})
        assert case.value(objective) >= -1e-12 * temperature**2

    @always
    @given(cases(), divergences, st.randoms(use_true_random=False))
    def test_the_order_of_classes_is_nothing(self, case: Case, objective: SoftTargets, random: Any) -> None:
        order = random.sample(range(case.student.shape[1]), case.student.shape[1])
        heard = replace(case.heard, logits=case.heard.logits[:, :, order])
        mixed = case.value(objective, student=case.student[:, order], heard=heard)
        assert mixed == pytest.approx(case.value(objective), rel=1e-9, abs=1e-12)

    @always
    @given(cases(("one_of",), teachers=1))
    def test_at_a_high_temperature_it_is_the_distance_of_centred_logits(self, case: Case) -> None:
        rows = case.known
        centred = [z[rows] - z[rows].mean(1, keepdim=True) for z in (case.student, case.heard.logits[0])]
        limit = float((centred[1] - centred[0]).square().sum()) / (2 * case.student.shape[1])
        objective = soft(temperature=1000)
        assert case.value(objective) == pytest.approx(limit, rel=0.05, abs=1e-8)

    @pytest.mark.parametrize("nature", ["one_of", "any_of"])
    @pytest.mark.parametrize("objective", DIVERGENCES, ids=lambda one: f"{one.divergence}-{one.beta}")
    def test_the_gradients_size_is_about_constant_in_the_temperature(
        self, nature: Nature, objective: SoftTargets
    ) -> None:
        student, teacher = (torch.from_numpy(np.random.default_rng(seed).normal(size=(50, 4))) for seed in (1, 2))
        heard = Heard(teacher[None], (1.0,), "probabilities")
        case = Case(nature, student, heard, torch.full((50,), -1), torch.ones(50, dtype=torch.bool))
        sizes = [
            float(gradient_of(case, objective.model_copy(update={"temperature": t})).norm()) for t in (2.0, 8.0, 32.0)
        ]
        assert max(sizes) < 1.5 * min(sizes)

    @always
    @given(cases(teachers=1))
    def test_the_middle_jsd_is_symmetric(self, case: Case) -> None:
        teacher = torch.where(case.known[:, None], case.heard.logits[0], 0.0)
        heard, swapped = (replace(case.heard, logits=one[None]) for one in (teacher, case.student))
        value = case.value(soft("jsd"), heard=heard, valid=case.known)
        assert case.value(soft("jsd"), student=teacher, heard=swapped, valid=case.known) == pytest.approx(value)

    @always
    @given(cases(), temperatures)
    def test_the_ends_of_jsd_are_forward_and_reverse_kl(self, case: Case, temperature: float) -> None:
        for beta, name in ((0.0, "forward_kl"), (1.0, "reverse_kl")):
            expected = case.value(soft(name, temperature))
            assert case.value(soft("jsd", temperature, beta)) == expected

    def test_the_ends_of_jsd_are_limits_of_it_over_beta(self) -> None:
        student, teacher = (torch.from_numpy(np.random.default_rng(seed).normal(size=(6, 4))) for seed in (1, 2))
        heard = Heard(teacher[None], (1.0,), "probabilities")
        case = Case("one_of", student, heard, torch.full((6,), -1), torch.ones(6, dtype=torch.bool))
        assert case.value(soft("jsd", beta=1e-6)) / 1e-6 == pytest.approx(case.value(soft("forward_kl")), rel=1e-4)
        assert case.value(soft("jsd", beta=1 - 1e-6)) / 1e-6 == pytest.approx(case.value(soft("reverse_kl")), rel=1e-4)

    def test_a_number_has_none(self) -> None:
        heard = Heard(torch.zeros(1, 2, 1), (1.0,), "logits")
        with pytest.raises(ValueError, match="no probabilities"):
            total([SOFT], torch.zeros(2, 1), heard, torch.zeros(2), nature="number")

    def test_no_gradient_goes_to_the_teacher(self) -> None:
        teacher = torch.randn(1, 3, 2, requires_grad=True)
        student = torch.randn(3, 2, requires_grad=True)
        terms = total([SOFT], student, Heard(teacher, (1.0,), "probabilities"), torch.zeros(3).long(), nature="one_of")
        terms.loss().backward()
        assert teacher.grad is None
        assert student.grad is not None
        assert student.grad.any()

    def test_bf16_logits_are_compared_in_full_precision(self) -> None:
        student, teacher = torch.randn(5, 3).bfloat16(), torch.randn(1, 5, 3).bfloat16()
        targets = torch.tensor([0, 1, 2, 0, 1])
        narrow, wide = (
            total([SOFT, HARD], one(student), Heard(one(teacher), (1.0,), "logits"), targets, nature="one_of").sums
            for one in (Tensor.bfloat16, Tensor.float)
        )
        assert [one.dtype for one in narrow] == [torch.float32] * 2
        torch.testing.assert_close(narrow, wide, rtol=0, atol=0)


class TestTeachers:
    def test_means_of_probabilities_and_of_logits_are_different_things(self) -> None:
        logits = torch.tensor([[[4.0, 0.0]], [[0.0, 1.0]]]).double()
        values = [
            total(
                [soft()],
                torch.zeros(1, 2).double(),
                Heard(logits, (3.0, 1.0), combine),
                torch.tensor([-1]),
                nature="one_of",
            )
            .sums[0]
            .item()
            for combine in ("probabilities", "logits")
        ]
        by_hand = [0.75 / (1 + np.exp(-4)) + 0.25 / (1 + np.e), 1 / (1 + np.exp(-2.75))]
        assert values == pytest.approx([p * np.log(2 * p) + (1 - p) * np.log(2 - 2 * p) for p in by_hand])
        assert values[0] != pytest.approx(values[1], rel=0.1)

    @always
    @given(cases(everything), st.floats(0.1, 50))
    def test_the_scale_of_the_weights_is_nothing(self, case: Case, scale: float) -> None:
        objective = from_teacher(case)
        scaled = replace(case.heard, weights=tuple(scale * one for one in case.heard.weights), combine="logits")
        heard = replace(case.heard, combine="logits")
        assert case.value(objective, heard=scaled) == pytest.approx(case.value(objective, heard=heard), abs=1e-9)

    @always
    @given(cases())
    def test_one_of_weight_0_is_not_listened_to(self, case: Case) -> None:
        silent = torch.full_like(case.heard.logits[:1], torch.nan)
        heard = Heard(torch.cat([silent, case.heard.logits]), (0.0, *case.heard.weights), case.heard.combine)
        assert case.terms(SOFT, heard=heard) == case.terms(SOFT)

    @pytest.mark.parametrize("weights", [(0.0,), (1.0, 1.0), (-1.0,)])
    def test_weights_that_mean_nothing_are_a_mistake(self, weights: tuple[float, ...]) -> None:
        with pytest.raises(ValueError, match="weight"):
            total(
                [SOFT],
                torch.zeros(1, 2),
                Heard(torch.zeros(1, 1, 2), weights, "logits"),
                torch.zeros(1).long(),
                nature="one_of",
            )

    def test_a_mean_of_probabilities_has_no_logits(self) -> None:
        heard = Heard(torch.zeros(2, 1, 2), (1.0, 1.0), "probabilities")
        with pytest.raises(ValueError, match="no logits"):
            total([DISTANCE], torch.zeros(1, 2), heard, torch.zeros(1).long(), nature="one_of")


def from_teacher(case: Case) -> Any:
    return DISTANCE if case.nature == "number" else SOFT


# --- rows -------------------------------------------------------------------------------------------------------------


class TestRows:
    @always
    @given(cases(everything), st.sampled_from([torch.nan, torch.inf, 1e30]))
    def test_what_is_not_valid_or_not_known_changes_nothing_and_has_no_gradient(
        self, case: Case, rubbish: float
    ) -> None:
        heard = replace(case.heard, combine="logits")
        labelled = case.valid & (case.targets != -1 if case.nature == "one_of" else known_targets(case.targets))
        for objective, rows in ((HARD, labelled), (from_teacher(case), case.known), (DISTANCE, case.known)):
            spoilt = torch.where(rows[:, None], case.student, rubbish)
            clean = case.rows(rows)
            expected = clean.value(objective, heard=replace(clean.heard, combine="logits"))
            assert case.value(objective, student=spoilt, heard=heard) == pytest.approx(expected, rel=1e-12, abs=1e-15)
            gradient = gradient_of(case, objective, student=spoilt, heard=heard)
            assert not gradient[~rows].any()
            assert gradient.isfinite().all()

    @pytest.mark.parametrize("nature", everything)
    def test_no_row_at_all_is_zero_and_not_nan(self, nature: Nature) -> None:
        student = torch.randn(3, 1 if nature == "number" else 2, requires_grad=True)
        targets = {"one_of": torch.full((3,), -1), "any_of": torch.full((3, 2), torch.nan)}
        heard = Heard(torch.full((1, *student.shape), torch.nan), (1.0,), "logits")
        truth = targets.get(nature, torch.full((3,), torch.nan))
        loss = total([HARD, DISTANCE], student, heard, truth, nature=nature).loss()
        loss.backward()
        assert loss.item() == 0
        assert student.grad is not None
        assert not student.grad.any()

    @pytest.mark.parametrize("narrow", [torch.float32, torch.bfloat16])
    @pytest.mark.parametrize("objective", [*DIVERGENCES, HARD, DISTANCE, soft("reverse_kl", 20), soft("jsd", 20)])
    def test_classes_that_are_not_there_add_nothing(self, objective: Any, narrow: torch.dtype) -> None:
        random = np.random.default_rng(3)
        student = torch.from_numpy(random.normal(size=(4, 3))).to(narrow)
        teachers = torch.from_numpy(random.normal(size=(2, 4, 3))).float()
        targets = torch.tensor([0, 2, 1, -1])
        values, gradients = [], []
        for pads in (0, 3):
            leaf = student.clone().requires_grad_()
            padded = torch.nn.functional.pad(leaf, (0, pads), value=NOWHERE)
            heard = Heard(torch.nn.functional.pad(teachers, (0, pads), value=NOWHERE), (0.3, 0.6), "logits")
            loss = total([objective], padded, heard, targets, nature="one_of").loss()
            loss.backward()
            values.append(loss.item())
            gradients.append(leaf.grad)
        assert values[1] == pytest.approx(values[0], rel=1e-6)
        torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-5, atol=1e-7)

    def test_rows_of_another_batch_are_a_mistake(self) -> None:
        with pytest.raises(ValueError, match="rows"):
            total(
                [SOFT],
                torch.zeros(2, 2),
                Heard(torch.zeros(1, 3, 2), (1.0,), "logits"),
                torch.zeros(2),
                nature="one_of",
            )


def known_targets(targets: Tensor) -> Tensor:
    return ~(targets if targets.ndim == 1 else targets[:, 0]).isnan()


# --- together ---------------------------------------------------------------------------------------------------------


def all_of(case: Case) -> list[Any]:
    """What the case's nature and its way of combining allow."""
    found: list[Any] = [HARD]
    if case.nature != "number":
        found.append(SOFT)
    if case.combine == "logits":
        found.append(DISTANCE)
    return found


class TestTotal:
    @always
    @given(cases(everything), st.integers(1, 5), st.randoms(use_true_random=False))
    def test_micro_batches_add_up_to_one_batch(self, case: Case, parts: int, random: Any) -> None:
        objectives = all_of(case)
        whole, leaf = case.student.clone().requires_grad_(), case.student.clone().requires_grad_()
        expected = case.terms(*objectives, student=whole).loss()
        expected.backward()
        counts = valid_rows(objectives, case.targets, case.heard, nature=case.nature, valid=case.valid)
        order = torch.tensor(random.sample(range(len(leaf)), len(leaf)))
        value = 0.0
        for rows in order.chunk(parts):
            part = case.rows(rows).terms(*objectives, student=leaf[rows]).loss(counts)
            part.backward()
            value += part.item()
        assert value == pytest.approx(expected.item(), rel=1e-9, abs=1e-12)
        torch.testing.assert_close(leaf.grad, whole.grad, rtol=1e-9, atol=1e-12)

    @always
    @given(cases(everything))
    def test_is_the_weighted_sum_of_means_over_valid_rows(self, case: Case) -> None:
        objectives = all_of(case)
        each = [case.value(one) / max(1, int(case.terms(one).counts[0])) for one in objectives]
        expected = sum(one.weight * value for one, value in zip(objectives, each, strict=True))
        assert case.terms(*objectives).loss().item() == pytest.approx(expected, rel=1e-12, abs=1e-15)

    @always
    @given(cases(everything), st.booleans())
    def test_the_counts_known_beforehand_are_those_found(self, case: Case, all_valid: bool) -> None:
        valid = None if all_valid else case.valid
        objectives = all_of(case)
        found = case.terms(*objectives, valid=valid).counts
        before = valid_rows(objectives, case.targets, case.heard, nature=case.nature, valid=valid)
        assert tuple(int(count) for count in found) == before

    def test_a_teacher_that_is_asked_later_answers_every_valid_row(self) -> None:
        targets, valid = torch.tensor([0, -1, 1]), torch.tensor([True, True, False])
        assert valid_rows([SOFT, HARD, DISTANCE], targets, None, nature="one_of", valid=valid) == (2, 1, 2)
        assert valid_rows([SOFT, HARD], targets, None, nature="one_of") == (3, 2)

    def test_hinton_is_the_classic_pair(self) -> None:
        student, teacher = (torch.from_numpy(np.random.default_rng(seed).normal(size=(4, 3))) for seed in (1, 2))
        heard = Heard(teacher[None], (1.0,), "probabilities")
        targets = torch.tensor([0, 1, 2, 1])
        objectives = outputs(Hinton(preset="hinton", temperature=4.0, alpha=0.3).outputs(TASK))
        p, q = (probabilities(z.numpy() / 4, "one_of") for z in (teacher, student))
        expected = 0.3 * 16 * kl(p, q) / 4 + 0.7 * hard_in_numpy(student.numpy(), targets.numpy(), "one_of") / 4
        loss = total(objectives, student, heard, targets, nature="one_of").loss()
        assert loss.item() == pytest.approx(expected)

    @pytest.mark.parametrize("objective", [SOFT, DISTANCE])
    def test_without_a_teacher_it_is_a_mistake(self, objective: Any) -> None:
        with pytest.raises(ValueError, match="teacher"):
            total([objective], torch.zeros(1, 2), None, torch.zeros(1).long(), nature="one_of")


class TestKinds:
    def test_a_weight_of_zero_is_not_active_and_asks_for_no_teacher(self) -> None:
        off = SOFT.model_copy(update={"weight": 0.0})
        assert active([off, HARD, RELATIONS]) == (HARD, RELATIONS)
        assert not needs_teacher([off, HARD])
        assert weight(off) == 0

    def test_only_those_of_the_answers_need_the_teachers_logits(self) -> None:
        assert needs_teacher([HARD, SOFT])
        assert needs_teacher([DISTANCE])
        assert not needs_teacher([HARD, RELATIONS])

    def test_each_is_of_the_answers_or_of_the_inside(self) -> None:
        assert outputs([SOFT, RELATIONS, HARD, DISTANCE]) == (SOFT, HARD, DISTANCE)
        assert features([SOFT, RELATIONS, HARD, DISTANCE]) == (RELATIONS,)
