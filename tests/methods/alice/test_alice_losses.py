"""The losses of Alice against loops in float64, hand values, invariances and gradients."""

import math

import pytest
import torch

from nnunet_alice.methods.alice.casa import CASA
from nnunet_alice.methods.alice.losses import (
    AliceLosses,
    Centre,
    alignment_loss,
    centred_targets,
    cross_view_loss,
    reconstruction_loss,
    sinkhorn_targets,
    soft_cross_entropy,
    swap_views,
)
from nnunet_alice.methods.ema import frozen_copy
from nnunet_alice.methods.heads import PrototypeHead

TEMPERATURES = {"teacher_temperature": 0.04, "student_temperature": 0.1}


def softmax(values):
    exponents = [math.exp(v - max(values)) for v in values]
    return [e / sum(exponents) for e in exponents]


def cross_entropy_in_loops(teacher, student, centre, tau_t, tau_s):
    """H of one sample from lists of K numbers."""
    target = softmax([(t - c) / tau_t for t, c in zip(teacher, centre, strict=True)])
    predicted = softmax([s / tau_s for s in student])
    return -sum(p * math.log(q) for p, q in zip(target, predicted, strict=True))


def cosines(*shape):
    """Logits in [-1, 1], as the head gives them."""
    return torch.rand(*shape, dtype=torch.float64) * 2 - 1


def distillation_cross_entropy(teacher, student, centre, teacher_temperature, student_temperature):
    """The paper's H(t, s): centred and sharpened targets."""
    targets = centred_targets(teacher, centre, teacher_temperature)
    return soft_cross_entropy(targets, student, student_temperature)


def centred_cross_view_loss(teacher, student, centre, teacher_temperature, student_temperature):
    return cross_view_loss(centred_targets(teacher, centre, teacher_temperature), student, student_temperature)


def centred_alignment_loss(teacher, student, centre, teacher_temperature, student_temperature):
    return alignment_loss(centred_targets(teacher, centre, teacher_temperature), student, student_temperature)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


class TestDistillationCrossEntropy:
    def test_equals_loops(self):
        teacher, student, centre = cosines(2, 3, 5), cosines(2, 3, 5), 0.2 * cosines(5)
        want = [
            cross_entropy_in_loops(teacher[b, t].tolist(), student[b, t].tolist(), centre.tolist(), 0.04, 0.1)
            for b in range(2)
            for t in range(3)
        ]
        loss = distillation_cross_entropy(teacher, student, centre, **TEMPERATURES)
        assert loss.item() == pytest.approx(sum(want) / 6, rel=1e-12)

    def test_hand_value(self):
        # Uniform target against probabilities 3/4 and 1/4.
        student = torch.tensor([[math.log(3.0), 0.0]], dtype=torch.float64)
        loss = distillation_cross_entropy(torch.zeros(1, 2), student, torch.zeros(2), 0.04, 1.0)
        assert loss.item() == pytest.approx(-0.5 * (math.log(0.75) + math.log(0.25)))

    def test_smallest_where_the_student_is_the_teacher(self):
        teacher = cosines(4, 6)
        centre = torch.zeros(6)
        same = distillation_cross_entropy(teacher, teacher, centre, 0.1, 0.1)
        target = centred_targets(teacher, centre, 0.1)
        torch.testing.assert_close(same, torch.special.entr(target).sum(-1).mean())
        assert distillation_cross_entropy(teacher, cosines(4, 6), centre, 0.1, 0.1) > same

    def test_invariant_to_shifts_of_either_side_and_to_a_shared_permutation(self):
        teacher, student, centre = cosines(4, 6), cosines(4, 6), cosines(6)
        loss = distillation_cross_entropy(teacher, student, centre, **TEMPERATURES)
        order = torch.randperm(6)
        for variant in (
            (teacher + 3, student - 2, centre + 1),
            (teacher[:, order], student[:, order], centre[order]),
        ):
            torch.testing.assert_close(distillation_cross_entropy(*variant, **TEMPERATURES), loss)

    def test_gradient_is_predicted_minus_target_on_the_student_and_none_on_the_teacher(self):
        teacher, student = cosines(4, 6).requires_grad_(), cosines(4, 6).requires_grad_()
        centre = torch.zeros(6, dtype=torch.float64, requires_grad=True)
        distillation_cross_entropy(teacher, student, centre, **TEMPERATURES).backward()
        assert teacher.grad is None and centre.grad is None
        predicted = torch.softmax(student.detach() / 0.1, dim=-1)
        want = (predicted - centred_targets(teacher, centre, 0.04)) / 0.1 / 4
        torch.testing.assert_close(student.grad, want)

    def test_each_half_stops_the_teachers_gradient_by_itself(self):
        teacher, student = cosines(4, 6).requires_grad_(), cosines(4, 6).requires_grad_()
        assert not centred_targets(teacher, torch.zeros(6).requires_grad_(), 0.04).requires_grad
        soft_cross_entropy(torch.softmax(teacher, dim=-1), student, 0.1).backward()
        assert teacher.grad is None and student.grad is not None

    def test_low_precision_inputs_and_autocast_are_computed_in_float32(self):
        teacher, student = cosines(4, 6).bfloat16(), cosines(4, 6).bfloat16()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = distillation_cross_entropy(teacher, student, torch.zeros(6), 0.01, 0.1)
        want = distillation_cross_entropy(teacher.double(), student.double(), torch.zeros(6).double(), 0.01, 0.1)
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(want.item(), rel=1e-5)

    @pytest.mark.parametrize("extreme", [1e4, -1e4])
    def test_extreme_logits_stay_finite(self, extreme):
        student = torch.tensor([[extreme, 0.0]], requires_grad=True)
        loss = distillation_cross_entropy(torch.tensor([[0.0, extreme]]), student, torch.zeros(2), 0.01, 0.1)
        loss.backward()
        assert loss.isfinite() and student.grad.isfinite().all()

    def test_bad_input_is_refused(self):
        with pytest.raises(ValueError, match=r"\(4, 6\) .* \(1, 6\)"):
            distillation_cross_entropy(cosines(4, 6), cosines(1, 6), torch.zeros(6), **TEMPERATURES)
        with pytest.raises(ValueError, match=r"centre .*\(1,\)"):
            distillation_cross_entropy(cosines(4, 6), cosines(4, 6), torch.zeros(1), **TEMPERATURES)
        with pytest.raises(ValueError, match=r"temperature .* 0\.0"):
            distillation_cross_entropy(cosines(4, 6), cosines(4, 6), torch.zeros(6), 0.0, 0.1)
        with pytest.raises(ValueError, match=r"temperature .* -1\.0"):
            distillation_cross_entropy(cosines(4, 6), cosines(4, 6), torch.zeros(6), 0.1, -1.0)


class TestCrossViewLoss:
    def test_equals_loops_over_ordered_pairs_of_different_views(self):
        teacher, student, centre = cosines(6, 5), cosines(6, 5), 0.2 * cosines(5)
        pairs = []
        for q in range(2):
            for v in range(2):
                if q == v:
                    continue
                per_sample = [
                    cross_entropy_in_loops(
                        teacher[3 * q + b].tolist(), student[3 * v + b].tolist(), centre.tolist(), 0.04, 0.1
                    )
                    for b in range(3)
                ]
                pairs.append(sum(per_sample) / 3)
        assert len(pairs) == 2
        loss = centred_cross_view_loss(teacher, student, centre, **TEMPERATURES)
        assert loss.item() == pytest.approx(sum(pairs) / 2, rel=1e-12)

    def test_names_of_query_and_anchor_are_exchangeable(self):
        teacher, student, centre = cosines(6, 5), cosines(6, 5), torch.zeros(5)
        torch.testing.assert_close(
            centred_cross_view_loss(swap_views(teacher), swap_views(student), centre, **TEMPERATURES),
            centred_cross_view_loss(teacher, student, centre, **TEMPERATURES),
        )

    def test_a_student_that_knows_only_its_own_view_is_punished(self):
        codes = torch.eye(6, dtype=torch.float64)
        own = centred_cross_view_loss(codes, codes, torch.zeros(6), **TEMPERATURES)
        other = centred_cross_view_loss(codes, swap_views(codes), torch.zeros(6), **TEMPERATURES)
        assert other < 0.01 < 5 < own

    def test_bad_input_is_refused(self):
        with pytest.raises(ValueError, match=r"\b5\b"):
            centred_cross_view_loss(cosines(5, 4), cosines(5, 4), torch.zeros(4), **TEMPERATURES)
        with pytest.raises(ValueError, match=r"cls .*\(4, 1, 4\)"):
            centred_cross_view_loss(cosines(4, 4), cosines(4, 1, 4), torch.zeros(4), **TEMPERATURES)
        with pytest.raises(ValueError, match=r"\(4, 4\)|\(6, 4\)"):
            centred_cross_view_loss(cosines(4, 4), cosines(6, 4), torch.zeros(4), **TEMPERATURES)


class TestAlignmentLoss:
    def test_equals_loops_over_views_and_tokens(self):
        teacher, student, centre = cosines(4, 3, 5), cosines(4, 3, 5), 0.2 * cosines(5)
        views = []
        for v in range(2):
            values = [
                cross_entropy_in_loops(teacher[b, t].tolist(), student[b, t].tolist(), centre.tolist(), 0.04, 0.1)
                for b in range(2 * v, 2 * v + 2)
                for t in range(3)
            ]
            views.append(sum(values) / len(values))
        loss = centred_alignment_loss(teacher, student, centre, **TEMPERATURES)
        assert loss.item() == pytest.approx(sum(views) / 2, rel=1e-12)

    def test_the_same_view_is_compared(self):
        codes = torch.eye(8, dtype=torch.float64).reshape(4, 2, 8)
        assert centred_alignment_loss(codes, codes, torch.zeros(8), **TEMPERATURES) < 0.01
        assert centred_alignment_loss(codes, swap_views(codes), torch.zeros(8), **TEMPERATURES) > 5

    def test_bad_input_is_refused(self):
        with pytest.raises(ValueError, match=r"tokens .*\(4, 8\)"):
            centred_alignment_loss(cosines(4, 8), cosines(4, 8), torch.zeros(8), **TEMPERATURES)


def test_gradients_reach_student_and_casa_and_never_the_teacher():
    width, prototypes = 6, 8
    student = PrototypeHead(width, 16, 4, prototypes)
    teacher = PrototypeHead(width, 16, 4, prototypes)  # requires gradient on purpose: the loss alone has to stop it
    casa = CASA(prototypes, 2, 4, 16, dropout=0.0)
    views, encoder, decoder = torch.randn(4, width), torch.randn(4, 3, width), torch.randn(4, 5, width)

    def logits(head):
        return (
            head.cls_logits(head.embed(views)),
            head.token_logits(head.embed(encoder)),
            head.token_logits(head.embed(decoder)),
        )

    cls_s, enc_s, dec_s = logits(student)
    cls_t, _, dec_t = logits(teacher)
    centre = torch.zeros(prototypes)
    losses = AliceLosses(
        centred_cross_view_loss(cls_t, cls_s, centre, **TEMPERATURES),
        centred_alignment_loss(casa(enc_s, dec_t), casa(enc_s, dec_s), centre, **TEMPERATURES),
        reconstruction_loss(torch.randn(4, 1, 2, 2, 2), torch.randn(4, 1, 2, 2, 2)),
        torch.zeros(()),
    )
    losses.total().backward()
    assert all(p.grad.abs().max() > 0 for p in student.parameters())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in casa.parameters())
    assert casa.to_value.weight.grad.abs().max() > 0
    assert all(p.grad is None for p in teacher.parameters())
    assert not any(p.requires_grad for p in frozen_copy(teacher).parameters())


class TestReconstruction:
    def test_hand_value_and_loops(self):
        image = torch.zeros(2, 1, 2, 2, 2)
        assert reconstruction_loss(torch.full_like(image, 3.0), image).item() == 4.5
        first, second = torch.randn(2, 2, 3, 2, 2), torch.randn(2, 2, 3, 2, 2)
        pairs = zip(first.flatten().tolist(), second.flatten().tolist(), strict=True)
        want = 0.5 * sum((a - b) ** 2 for a, b in pairs) / first.numel()
        assert reconstruction_loss(first, second).item() == pytest.approx(want, rel=1e-5)

    def test_only_the_chosen_voxels_count(self):
        first, second = torch.randn(2, 2, 3, 2, 2), torch.randn(2, 2, 3, 2, 2)
        where = torch.rand(2, 3, 2, 2) < 0.5
        errors = [
            (first[b, c, z, y, x] - second[b, c, z, y, x]).item() ** 2
            for b, z, y, x in where.nonzero().tolist()
            for c in range(2)
        ]
        want = 0.5 * sum(errors) / len(errors)
        assert reconstruction_loss(first, second, where).item() == pytest.approx(want, rel=1e-5)

    def test_no_voxel_gives_zero_and_a_gradient(self):
        rebuilt = torch.randn(2, 1, 2, 2, 2, requires_grad=True)
        loss = reconstruction_loss(rebuilt, torch.zeros(2, 1, 2, 2, 2), torch.zeros(2, 2, 2, 2, dtype=torch.bool))
        loss.backward()
        assert loss.item() == 0 and rebuilt.grad.abs().max() == 0

    def test_float16_does_not_overflow(self):
        image = torch.zeros(1, 1, 2, 2, 2, dtype=torch.float16)
        assert reconstruction_loss(image + 1000, image).item() == 500_000

    def test_broadcasting_is_refused(self):
        with pytest.raises(ValueError, match=r"\(2, 1, 4, 4, 4\) .* \(2, 2, 4, 4, 4\)"):
            reconstruction_loss(torch.zeros(2, 1, 4, 4, 4), torch.zeros(2, 2, 4, 4, 4))
        with pytest.raises(ValueError, match=r"\(1, 4, 4, 4\) .* \(2, 1, 4, 4, 4\)"):
            reconstruction_loss(*2 * [torch.zeros(2, 1, 4, 4, 4)], torch.ones(1, 4, 4, 4, dtype=torch.bool))


class TestAliceLosses:
    losses = AliceLosses(torch.tensor(2.0), torch.tensor(3.0), torch.tensor(0.5), torch.tensor(7.0))

    def test_total_has_the_papers_weights(self):
        assert self.losses.total().item() == 10.0

    def test_each_weight_belongs_to_its_part(self):
        assert self.losses.total((100.0, 10.0, 1.0, 1000.0)).item() == 7230.5
        assert self.losses.total((0.0, 0.0, 2.0, 0.0)).item() == 1.0

    def test_another_number_of_weights_is_refused(self):
        with pytest.raises(ValueError):
            self.losses.total((1.0, 1.0))


class TestCentre:
    def test_follows_the_formula_over_several_batches(self):
        centre = Centre(4, momentum=0.9)
        want = [0.0] * 4
        for shape in ((3, 4), (2, 5, 4), (1, 4)):
            outputs = torch.randn(shape)
            rows = outputs.reshape(-1, 4).tolist()
            mean = [sum(row[k] for row in rows) / len(rows) for k in range(4)]
            want = [0.9 * c + 0.1 * m for c, m in zip(want, mean, strict=True)]
            centre.update(outputs)
        assert centre.value.tolist() == pytest.approx(want, abs=1e-6)

    def test_state_survives_a_checkpoint_and_update_is_in_place(self):
        centre, other = Centre(4), Centre(4)
        buffer = centre.value
        centre.update(torch.randn(3, 4))
        assert buffer is centre.value and buffer.abs().max() > 0
        other.load_state_dict(centre.state_dict())
        assert torch.equal(other.value, centre.value)

    def test_keeps_no_graph_and_stays_float32(self):
        centre = Centre(4)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            centre.update(torch.randn(3, 4, requires_grad=True).bfloat16())
        assert centre.value.dtype == torch.float32 and not centre.value.requires_grad

    def test_a_steady_centre_makes_a_constant_teacher_uniform(self):
        centre = Centre(4)
        constant = torch.tensor([[0.9, -0.2, 0.1, 0.4]])
        for _ in range(200):
            centre.update(constant)
        torch.testing.assert_close(centred_targets(constant, centre.value, 0.04), torch.full((1, 4), 0.25))

    def test_bad_input_is_refused(self):
        with pytest.raises(ValueError, match=r"^teacher_outputs .*\(3, 5\)"):
            Centre(4).update(torch.zeros(3, 5))
        with pytest.raises(ValueError, match=r"^teacher_outputs .*\(0, 4\)"):
            Centre(4).update(torch.zeros(0, 4))
        with pytest.raises(ValueError, match=r"^momentum"):
            Centre(4, momentum=1.5)


class TestSinkhorn:
    def test_equals_loops(self):
        logits = cosines(5, 3)
        plan = [[math.exp(v / 0.05) for v in row] for row in logits.tolist()]
        for _ in range(3):
            shares = [sum(row[k] for row in plan) for k in range(3)]
            plan = [[row[k] / shares[k] for k in range(3)] for row in plan]
            plan = [[v / sum(row) for v in row] for row in plan]
        targets = sinkhorn_targets(logits, 0.05)
        for row, want in zip(targets.tolist(), plan, strict=True):
            assert row == pytest.approx(want, rel=1e-10)

    def test_many_iterations_balance_the_prototypes_even_under_collapse(self):
        collapsed = torch.tensor([0.9, -0.2, 0.1, 0.4]).expand(8, 4) + 0.01 * torch.randn(8, 4)
        targets = sinkhorn_targets(collapsed, 0.05, iterations=50)
        torch.testing.assert_close(targets.sum(dim=0), torch.full((4,), 2.0), rtol=1e-3, atol=0)
        torch.testing.assert_close(targets.sum(dim=1), torch.ones(8))

    def test_invariant_to_shifts_of_prototypes_and_detached(self):
        logits = cosines(6, 4).requires_grad_()
        targets = sinkhorn_targets(logits, 0.05)
        assert not targets.requires_grad
        torch.testing.assert_close(sinkhorn_targets(logits + cosines(4), 0.05), targets)

    def test_small_temperatures_do_not_overflow_in_float32(self):
        targets = sinkhorn_targets(cosines(6, 4).float() * 10, 0.005)
        assert targets.isfinite().all()
        torch.testing.assert_close(targets.sum(dim=1), torch.ones(6))

    def test_leading_axes_are_balanced_each_on_its_own(self):
        logits = cosines(2, 3, 6, 4)
        targets = sinkhorn_targets(logits, 0.05)
        for i, j in ((0, 0), (1, 2)):
            torch.testing.assert_close(targets[i, j], sinkhorn_targets(logits[i, j], 0.05))

    def test_goes_with_the_cross_view_form(self):
        teacher, student = cosines(4, 6), cosines(4, 6).requires_grad_()
        targets = sinkhorn_targets(teacher, 0.05)
        soft_cross_entropy(swap_views(targets), student, 0.1).backward()
        want = (torch.softmax(student.detach() / 0.1, dim=-1) - targets[[2, 3, 0, 1]]) / 0.1 / 4
        torch.testing.assert_close(student.grad, want)

    def test_bad_input_is_refused(self):
        with pytest.raises(ValueError, match=r"^teacher_logits .*\(4,\)"):
            sinkhorn_targets(cosines(4), 0.05)
        with pytest.raises(ValueError, match=r"^iterations"):
            sinkhorn_targets(cosines(2, 3), 0.05, iterations=0)
        with pytest.raises(ValueError, match="temperature"):
            sinkhorn_targets(cosines(2, 3), 0.0)
