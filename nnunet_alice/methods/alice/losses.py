"""The losses of Alice (section 3.2 to 3.4), one function for each equation, and the centre of the teacher's outputs.

Logits are what the head or CASA gives, before any temperature. Everything is computed in at least float32, also under
autocast: temperatures of 0.01 multiply rounding errors by 100. The teacher side never carries gradient.

Teacher targets come in two forms: centred and sharpened (`centred_targets`, the paper's form), or balanced by
`sinkhorn_targets`. The losses below use the first; the second goes through `soft_cross_entropy` and `swap_views`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from nnunet_alice.methods.distributed import max_over_ranks, mean_over_ranks
from nnunet_alice.methods.precision import at_least_float32

REFERENCE_WEIGHTS = (1.0, 1.0, 10.0, 0.0)


class AliceLosses(NamedTuple):
    """Parts of the loss, unweighted scalars.

    Attributes:
        cls: ``L_cls``, self-distillation of the global embedding across matched views.
        align: ``L_align``, self-distillation of the tokens that CASA aligned.
        reconstruction: ``L_rec``, half the mean squared error of the reconstruction.
        regions: ``L_reg``, cross-entropy of the atlas's regions; not in the paper.
    """

    cls: Tensor
    align: Tensor
    reconstruction: Tensor
    regions: Tensor

    def total(self, weights: Sequence[float] = REFERENCE_WEIGHTS) -> Tensor:
        """Return weighted sum, the paper's ``1 L_cls + 1 L_align + 10 L_rec`` by default.

        Args:
            weights: Weights of cls, align, reconstruction and regions.

        Raises:
            ValueError: If there are not four weights.
        """
        if len(weights) != len(self):
            raise ValueError(f"Expected the weights of {', '.join(self._fields)}, got {len(weights)} numbers.")
        return sum((weight * part for weight, part in zip(weights, self, strict=True)), self.cls.new_zeros(()))


def centred_targets(teacher_logits: Tensor, centre: Tensor, temperature: float) -> Tensor:
    """Return targets of the teacher: ``softmax((t - c) / tau_t)``, detached.

    Args:
        teacher_logits: (..., K).
        centre: (K,), see `Centre`.
        temperature: tau_t.

    Returns:
        (..., K) probabilities, at least float32.

    Raises:
        ValueError: If the widths differ or the temperature is not positive.
    """
    if centre.shape != teacher_logits.shape[-1:]:
        raise ValueError(f"A centre of shape {tuple(centre.shape)} does not fit logits {tuple(teacher_logits.shape)}.")
    _check_temperature(temperature)
    return torch.softmax((at_least_float32(teacher_logits.detach()) - centre.detach()) / temperature, dim=-1)


@torch.no_grad()
def sinkhorn_targets(teacher_logits: Tensor, temperature: float, iterations: int = 3) -> Tensor:
    """Return targets of the teacher, balanced over prototypes (Sinkhorn-Knopp, as SwAV), without a centre.

    ``exp(t / temperature)`` is scaled in turn so that all prototypes have the same share of the batch and all samples
    are distributions. The batch of all ranks counts, whose numbers of rows may differ. The shares are equal by
    construction, so the marginal entropy says nothing about collapse then. Computed in logarithms: no overflow.

    Args:
        teacher_logits: (..., N, K) of this rank; leading axes are balanced each on its own.
        temperature: Regularisation (epsilon of the papers).
        iterations: Number of rounds; samples are scaled last.

    Returns:
        (..., N, K) probabilities, at least float32.

    Raises:
        ValueError: If the shape is not (..., N, K), the temperature is not positive or there are no iterations.
    """
    if teacher_logits.ndim < 2:
        raise ValueError(f"teacher_logits must have shape (..., N, K), got {tuple(teacher_logits.shape)}.")
    if iterations < 1:
        raise ValueError(f"iterations must be positive, got {iterations}.")
    _check_temperature(temperature)
    log_plan = at_least_float32(teacher_logits) / temperature
    for _ in range(iterations):
        local = log_plan.logsumexp(dim=-2, keepdim=True)
        largest = max_over_ranks(local)
        log_plan = log_plan - (largest + mean_over_ranks((local - largest).exp()).log())
        log_plan = log_plan.log_softmax(dim=-1)
    return log_plan.exp()


def soft_cross_entropy(targets: Tensor, student_logits: Tensor, student_temperature: float) -> Tensor:
    """Return ``-sum targets * log_softmax(s / tau_s)``, averaged over everything but the prototypes.

    Args:
        targets: (..., K) probabilities of the teacher; no gradient flows into them.
        student_logits: (..., K).
        student_temperature: tau_s.

    Raises:
        ValueError: If the shapes differ or the temperature is not positive.
    """
    if targets.shape != student_logits.shape:
        raise ValueError(
            "Teacher and student must have the same shape, "
            f"got {tuple(targets.shape)} and {tuple(student_logits.shape)}."
        )
    _check_temperature(student_temperature)
    log_probabilities = torch.log_softmax(at_least_float32(student_logits) / student_temperature, dim=-1)
    return -(targets.detach() * log_probabilities).sum(dim=-1).mean()


def swap_views(x: Tensor) -> Tensor:
    """Exchange the halves of a batch, first B queries, then B anchors: every view meets its matched view.

    Args:
        x: (2B, ...).

    Returns:
        (2B, ...), first the B anchors, then the B queries.

    Raises:
        ValueError: If the number of rows is odd or zero.
    """
    if x.shape[0] == 0 or x.shape[0] % 2:
        raise ValueError(f"Expected B query and B anchor views, got {x.shape[0]} rows.")
    return x.roll(x.shape[0] // 2, dims=0)


def cross_view_loss(targets: Tensor, student_cls: Tensor, student_temperature: float) -> Tensor:
    """Return ``L_cls``: mean over the two ordered pairs of different views of ``H(T_cls[view q], S_cls[view v])``.

    Args:
        targets: (2B, K) probabilities, the teacher's of each view; first the queries, then the anchors; row b and row
            B + b show the same anatomy.
        student_cls: (2B, K) logits, in the same order.
        student_temperature: tau_s.

    Raises:
        ValueError: If shapes do not fit or the temperature is not positive.
    """
    _check_axes("cls", "(2B, K)", 2, targets, student_cls)
    return soft_cross_entropy(swap_views(targets), student_cls, student_temperature)


def alignment_loss(targets: Tensor, student: Tensor, student_temperature: float) -> Tensor:
    """Return ``L_align``: mean over the two views of ``H(T~[view v], S~[view v])``, averaged over tokens.

    Args:
        targets: (2B, T, K) probabilities of the teacher's tokens aligned by CASA; no gradient flows into them, so CASA
            learns from the student's side.
        student: (2B, T, K) logits of the student's.
        student_temperature: tau_s.

    Raises:
        ValueError: If shapes do not fit or the temperature is not positive.
    """
    _check_axes("aligned tokens", "(2B, T, K)", 3, targets, student)
    return soft_cross_entropy(targets, student, student_temperature)


def reconstruction_loss(reconstruction: Tensor, image: Tensor, where: Tensor | None = None) -> Tensor:
    """Return ``L_rec``: half the mean squared error over all voxels, masked or not, or over some.

    Args:
        reconstruction: (2B, C, *patch), from the masked views.
        image: (2B, C, *patch), the views without mask.
        where: (2B, *patch) bool, the voxels that count; None for all, as in the paper.

    Returns:
        Scalar; 0, with a gradient of 0, where no voxel counts.

    Raises:
        ValueError: If the shapes differ.
    """
    if reconstruction.shape != image.shape:
        # Broadcasting would hide it.
        raise ValueError(
            "Reconstruction and image must have the same shape, "
            f"got {tuple(reconstruction.shape)} and {tuple(image.shape)}."
        )
    error = (at_least_float32(reconstruction) - at_least_float32(image)).square()
    if where is None:
        return 0.5 * error.mean()
    if where.shape != (image.shape[0], *image.shape[2:]):
        raise ValueError(f"Voxels of shape {tuple(where.shape)} do not fit views of shape {tuple(image.shape)}.")
    return 0.5 * (error * where.unsqueeze(1)).sum() / (where.sum() * image.shape[1]).clamp_min(1)


class Centre(nn.Module):
    """Centre of the teacher's outputs: EMA of their mean over the batches of all ranks.

    Subtracting it keeps any one prototype from taking over. It starts at zero and is part of the state dict.

    Attributes:
        value: Buffer (K,), float32.
        momentum: Share of the old centre that stays.
    """

    value: Tensor

    def __init__(self, prototypes: int, momentum: float = 0.9):
        """Create the centre.

        Args:
            prototypes: K.
            momentum: Share of the old centre that stays, in [0, 1].

        Raises:
            ValueError: If ``momentum`` is outside [0, 1].
        """
        super().__init__()
        if not 0.0 <= momentum <= 1.0:
            raise ValueError(f"momentum must lie in [0, 1], got {momentum}.")
        self.momentum = momentum
        self.register_buffer("value", torch.zeros(prototypes))

    @torch.no_grad()
    def update(self, teacher_outputs: Tensor) -> None:
        """Move the centre, ``c <- m c + (1 - m) * mean``, once a step, after the loss has used the old one.

        With a process group, every rank has to call it; ranks may hold different numbers of rows.

        Args:
            teacher_outputs: (..., K) logits of this rank.

        Raises:
            ValueError: If the width is not K, or there are no rows.
        """
        if teacher_outputs.ndim < 2 or teacher_outputs.shape[-1] != self.value.shape[0] or not teacher_outputs.numel():
            raise ValueError(
                f"teacher_outputs must have shape (..., {self.value.shape[0]}), got {tuple(teacher_outputs.shape)}."
            )
        rows = at_least_float32(teacher_outputs).flatten(0, -2)
        # Sum and number of rows travel together: one collective, and right for unequal batches.
        sums = mean_over_ranks(torch.cat([rows.sum(dim=0), rows.new_full((1,), float(rows.shape[0]))]))
        self.value.lerp_((sums[:-1] / sums[-1]).to(self.value.dtype), 1.0 - self.momentum)


def _check_temperature(temperature: float) -> None:
    if temperature <= 0:
        raise ValueError(f"A temperature must be positive, got {temperature}.")


def _check_axes(what: str, expected: str, ndim: int, *tensors: Tensor) -> None:
    for tensor in tensors:
        if tensor.ndim != ndim:
            raise ValueError(f"Expected {what} of shape {expected}, got {tuple(tensor.shape)}.")
