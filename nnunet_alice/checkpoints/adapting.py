"""Rules that make a pretrained tensor fit a different network, each of which keeps something that can be stated.

- Input channels (``adapt_input_channels``): equal channels give the same response as before.
- Kernel sizes (``adapt_kernel``): a constant image gives the same response as before (away from zero padding); a kernel
  that only grows gives the same response to every image.
- Strides of transposed convolutions (``adapt_upsampling``): the mean over the upsampled voxels stays; from stride 1
  to n the result is the old one, repeated.
- More features (``widen``): the old features are computed exactly as before, new ones start fresh beside them. *Fewer*
  features are not carried: whatever subset is kept, the layers above would see a different function. Such a tensor
  stays fresh, and the table says so.
- 2D and 3D (``as_dimension``): a 2D kernel is a 3D kernel that is one voxel deep.
"""

from typing import NamedTuple

import torch
from torch.nn.functional import adaptive_avg_pool3d

from nnunet_alice.triples import triple


class Adapted(NamedTuple):
    """A source tensor made to fit.

    Attributes:
        tensor: of the target's shape; None if no rule applies.
        carried: number of its elements that stem from the source.
        how: the rules that were used, or why none applies.
    """

    tensor: torch.Tensor | None
    carried: int
    how: str


def adapt_input_channels(weight: torch.Tensor, image_channels: int, extra_channels: int = 0) -> torch.Tensor:
    """Return the first convolution of a network for a different number of input channels.

    Every new channel gets the sum of the old channels' kernels divided by the new number, so that equal channels give
    the old response. (For one old channel: repeated and rescaled. Which of several old channels means the same as a new
    one is not known, so they are not told apart.)

    Args:
        weight: (out, in, *kernel).
        image_channels: new number of image channels.
        extra_channels: channels after them that are no image (nnU-Net's cascade: the previous stage's segmentation);
            their kernels are zero, so that they are ignored until training finds them useful.

    Returns:
        (out, image_channels + extra_channels, *kernel).
    """
    mean = weight.sum(1, keepdim=True) / image_channels
    image = mean.repeat_interleave(image_channels, dim=1)
    if weight.shape[1] == image_channels:
        image = weight
    return torch.cat((image, weight.new_zeros(weight.shape[0], extra_channels, *weight.shape[2:])), dim=1)


def adapt_kernel(weight: torch.Tensor, kernel: tuple[int, ...]) -> torch.Tensor | None:
    """Return the kernel of a different (odd) size with the same response to constants.

    Larger: the old kernel in the middle of zeros. Smaller: a tap that falls outside is added to the nearest one inside
    (to a size of 1: all taps of the axis summed; the average would make the response three times smaller).

    Args:
        weight: (out, in, *old kernel).
        kernel: new kernel size, one number an axis.

    Returns:
        (out, in, *kernel), or None if an old or new size is even (nnU-Net has none: their centre is no voxel).
    """
    for axis, new in enumerate(kernel, start=2):
        old = weight.shape[axis]
        if old == new:
            continue
        if old % 2 == 0 or new % 2 == 0:
            return None
        offsets = torch.arange(old, device=weight.device) - old // 2
        taps = offsets.clamp(-(new // 2), new // 2) + new // 2
        shape = (*weight.shape[:axis], new, *weight.shape[axis + 1 :])
        weight = weight.new_zeros(shape).index_add_(axis, taps, weight)
    return weight


def adapt_upsampling(weight: torch.Tensor, kernel: tuple[int, ...]) -> torch.Tensor:
    """Return transposed convolution (kernel = stride, as in nnU-Net's decoder) of a different stride.

    Each tap makes one voxel of the upsampled image. Fewer taps: the average of those that fall together. More taps:
    repeated.

    Args:
        weight: (in, out, *old stride), two or three axes.
        kernel: new stride, as many axes.

    Returns:
        (in, out, *kernel).
    """
    missing = 3 - len(kernel)
    taps = weight.reshape(weight.shape[0], weight.shape[1], *(1,) * missing, *weight.shape[2:])
    taps = adaptive_avg_pool3d(taps, triple((*(1,) * missing, *kernel)))
    return taps.reshape(weight.shape[0], weight.shape[1], *kernel)


def as_dimension(weight: torch.Tensor, axes: int) -> torch.Tensor | None:
    """Return the kernel of a 2D network for a 3D one (one voxel deep) and back.

    Args:
        weight: (a, b, *kernel).
        axes: number of kernel axes wanted, 2 or 3.

    Returns:
        the weight with ``axes`` kernel axes, or None if a 3D kernel is deeper than one voxel (flatten it first).
    """
    missing = axes - (weight.ndim - 2)
    if missing == 0:
        return weight
    if missing == 1:
        return weight.unsqueeze(2)
    return weight.squeeze(2) if missing == -1 and weight.shape[2] == 1 else None


def widen(source: torch.Tensor, fresh: torch.Tensor, groups: int = 1) -> torch.Tensor:
    """Put a tensor into a wider one so that the old output features stay exactly what they were.

    Old features see the old inputs with the old weights and new inputs with weight zero; new features keep ``fresh``.

    Args:
        source: (out, in, *kernel) or (out,).
        fresh: the wider tensor as initialised, same number of axes, same kernel.
        groups: parts of the input axis that widen separately: 2 where a decoder concatenates upsampled and skipped
            features.

    Returns:
        a new tensor of ``fresh``'s shape.
    """
    result = fresh.clone()
    out = source.shape[0]
    if source.ndim == 1:
        result[:out] = source
        return result
    result[:out] = 0
    old, new = source.shape[1] // groups, fresh.shape[1] // groups
    for group in range(groups):
        result[:out, group * new : group * new + old] = source[:, group * old : (group + 1) * old]
    return result


def adapt(
    source: torch.Tensor,
    fresh: torch.Tensor,
    *,
    transposed: bool = False,
    image_channels: int | None = None,
    source_image_channels: int | None = None,
    concatenated: bool = False,
) -> Adapted:
    """Make ``source`` fit in place of ``fresh`` by the rules of this module, or say why not.

    Args:
        source: pretrained tensor.
        fresh: the target network's tensor as initialised.
        transposed: both are weights of a transposed convolution, (in, out, *kernel).
        image_channels: for the network's first convolution, the number of the target's image channels; what follows
            them is a previous stage's segmentation.
        source_image_channels: the same of the source; all by default.
        concatenated: the input is [upsampled features, skipped features] of equal numbers.
    """
    other_inputs = image_channels is not None and (image_channels, fresh.shape[1]) != (
        source_image_channels or source.shape[1],
        source.shape[1],
    )
    if source.shape == fresh.shape and not other_inputs:
        return Adapted(source.clone(), source.numel(), "")
    if source.ndim == 1 or fresh.ndim == 1:
        return _fit_width(source, fresh, 1, []) if source.ndim == fresh.ndim else _no("other kind of layer")
    rules: list[str] = []
    axes = fresh.ndim - 2
    adapted: torch.Tensor | None = source
    if source.ndim != fresh.ndim:
        rules.append(f"{source.ndim - 2}D to {axes}D")
        if source.ndim > fresh.ndim:  # the depth that a 2D network lacks goes by the rule for its kernel
            flat = (1, *source.shape[3:])
            adapted = adapt_upsampling(source, flat) if transposed else adapt_kernel(source, flat)
        adapted = None if adapted is None else as_dimension(adapted, axes)
    if adapted is None:
        return _no("kernel of even size")
    kernel = tuple(fresh.shape[2:])
    if tuple(adapted.shape[2:]) != kernel:
        old = "x".join(map(str, adapted.shape[2:]))
        adapted = adapt_upsampling(adapted, kernel) if transposed else adapt_kernel(adapted, kernel)
        if adapted is None:
            return _no("kernel of even size")
        rules.append(f"{'stride' if transposed else 'kernel'} {old} to {'x'.join(map(str, kernel))}")
    if image_channels is not None and other_inputs:
        return _fit_inputs(adapted[:, :source_image_channels], fresh, image_channels, rules)
    if transposed:
        fitted = _fit_width(adapted.transpose(0, 1), fresh.transpose(0, 1), 1, rules)
        return fitted._replace(tensor=None if fitted.tensor is None else fitted.tensor.transpose(0, 1).contiguous())
    if concatenated and adapted.shape[1] != 2 * adapted.shape[0] and adapted.shape != fresh.shape:
        return _no("its input is not [upsampled, skipped]")
    return _fit_width(adapted, fresh, 2 if concatenated else 1, rules)


def _fit_inputs(source: torch.Tensor, fresh: torch.Tensor, image_channels: int, rules: list[str]) -> Adapted:
    """Return the last steps of ``adapt`` for the first convolution, whose ``source`` holds images alone."""
    extra = fresh.shape[1] - image_channels
    if source.shape[1] != image_channels:
        rules = [*rules, f"{source.shape[1]} to {image_channels} input channels"]
    if extra:
        rules = [*rules, f"{extra} more of zeros"]
    adapted = adapt_input_channels(source, image_channels, extra)
    fitted = _fit_width(adapted, fresh, 1, rules)
    return fitted if fitted.tensor is None else fitted._replace(carried=adapted[:, :image_channels].numel())


def _fit_width(source: torch.Tensor, fresh: torch.Tensor, groups: int, rules: list[str]) -> Adapted:
    """Return the last step of ``adapt``: number of features."""
    if source.shape == fresh.shape:
        return Adapted(source, source.numel(), ", ".join(rules))
    if any(old > new for old, new in zip(source.shape[:2], fresh.shape[:2], strict=True)):
        return _no("fewer features than the source")
    old, new = ("x".join(map(str, tensor.shape[:2])) for tensor in (source, fresh))
    return Adapted(widen(source, fresh, groups), source.numel(), ", ".join([*rules, f"widened {old} to {new}"]))


def _no(why: str) -> Adapted:
    return Adapted(None, 0, why)
