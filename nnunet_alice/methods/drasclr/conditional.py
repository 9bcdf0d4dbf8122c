"""Location-conditioned convolution (DrasCLR, Section 3.3): the kernel is a mixture of experts chosen by the location.

The blocks of an ordinary encoder call ``conv(x)`` and know nothing of locations. So the location reaches the layers
through one `LocationContext` that they share. `ConditionalEncoder` fills it for the time of one forward pass.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional


class LocationGroups(NamedTuple):
    """The distinct locations of a batch and the samples that lie at each.

    The sizes are host integers: which samples share a kernel is known when the batch is put together. Asking the
    device for it would stall every step and break compiled graphs.

    Attributes:
        points: (G, 3) float, the distinct locations, atlas coordinates in [-1, 1], (z, y, x).
        counts: G positive integers that sum to the batch size B; the first ``counts[0]`` samples lie at ``points[0]``,
            and so on.
    """

    points: Tensor
    counts: tuple[int, ...]


class LocationContext:
    """Where all conditional layers of one encoder read the locations of the batch that is passing through.

    Copying an encoder copies its context with it, so a query and a key encoder never share one. Empty between forward
    passes: a layer that is not reached through its `ConditionalEncoder` raises instead of reusing the locations of
    the last batch. That includes activation checkpointing of single blocks, which runs them again during backward.
    """

    def __init__(self) -> None:
        self.locations: LocationGroups | None = None


class ConditionalConv3d(nn.Module):
    """3-D convolution with kernel ``W(p) = sum_e r_e(p) W_e``, routing ``r(p) = sigmoid(A p + b)``, one shared bias.

    Kernels are mixed once per distinct location. The samples of a location go through one convolution together
    (the reference implementation loops over samples and mixes for each). Mixing runs in the precision of the experts
    also under autocast: then only the mixed kernels are cast to half precision, not all the experts.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias: as in `torch.nn.Conv3d`.
        num_experts: E.
        context: read for the locations when ``forward`` gets none.
        generator: random source of the initial values.

    Attributes:
        experts: (E, out, in / groups, kz, ky, kx), each starts like the kernel of a plain convolution of that fan-in.
        routing_weight: (E, 3), ``A``.
        routing_bias: (E,), ``b``.
        bias: (out,) or None.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, ...],
        stride: int | tuple[int, ...] = 1,
        padding: int | tuple[int, ...] = 0,
        dilation: int | tuple[int, ...] = 1,
        groups: int = 1,
        bias: bool = True,
        *,
        num_experts: int = 8,
        context: LocationContext | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if num_experts < 1:
            raise ValueError(f"num_experts must be at least 1, got {num_experts}.")
        if in_channels % groups or out_channels % groups:
            raise ValueError(f"{in_channels} and {out_channels} channels cannot be split into {groups} groups.")
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.kernel_size, self.stride = _triple(kernel_size), _triple(stride)
        self.padding, self.dilation = _triple(padding), _triple(dilation)
        self.context = context
        self.experts = nn.Parameter(torch.empty(num_experts, out_channels, in_channels // groups, *self.kernel_size))
        self.routing_weight = nn.Parameter(torch.empty(num_experts, 3))
        self.routing_bias = nn.Parameter(torch.empty(num_experts))
        self.bias = nn.Parameter(torch.empty(out_channels)) if bias else None
        self.reset_parameters(generator)

    @property
    def num_experts(self) -> int:
        """E, the number of expert kernels."""
        return self.experts.shape[0]

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw experts and bias as `torch.nn.Conv3d` draws its kernel and bias, the routing as `torch.nn.Linear`."""
        bound = 1 / math.sqrt(self.experts[0, 0].numel())
        self.experts.uniform_(-bound, bound, generator=generator)
        if self.bias is not None:
            self.bias.uniform_(-bound, bound, generator=generator)
        for parameter in (self.routing_weight, self.routing_bias):
            parameter.uniform_(-1 / math.sqrt(3), 1 / math.sqrt(3), generator=generator)

    def routing(self, points: Tensor) -> Tensor:
        """Return expert weights (G, E) at locations ``points`` (G, 3), each in (0, 1), not summing to 1."""
        with torch.autocast(points.device.type, enabled=False):
            points = points.to(self.routing_weight.dtype)
            return torch.sigmoid(functional.linear(points, self.routing_weight, self.routing_bias))

    def mix(self, points: Tensor) -> Tensor:
        """Return kernels ``W(p)`` at locations ``points`` (G, 3): (G, out, in / groups, kz, ky, kx)."""
        routing = self.routing(points)
        with torch.autocast(points.device.type, enabled=False):
            return (routing @ self.experts.flatten(1)).unflatten(1, self.experts.shape[1:])

    def forward(self, x: Tensor, locations: LocationGroups | None = None) -> Tensor:
        """Convolve each sample with the kernel of its location.

        Args:
            x: (B, in, z, y, x), sorted by location as in `LocationGroups`.
            locations: groups of the batch; None reads them from the context.

        Returns:
            (B, out, z', y', x').

        Raises:
            ValueError: no locations are known, or they are not those of ``x``.
        """
        if locations is None:
            locations = self.context.locations if self.context is not None else None
        if locations is None:
            raise ValueError("A conditional convolution has no locations; call it through its ConditionalEncoder.")
        counts = locations.counts
        if sum(counts) != x.shape[0] or len(counts) != locations.points.shape[0]:
            raise ValueError(
                f"{len(counts)} groups of {sum(counts)} samples at {locations.points.shape[0]} locations do not fit "
                f"a batch of {x.shape[0]}."
            )
        kernels = self.mix(locations.points)
        if len(counts) == 1:
            return self._convolve(x, kernels[0], self.bias, self.groups)
        if all(count == 1 for count in counts):
            return self._convolve_each(x, kernels)
        # Equal counts above 1 would also fit one convolution with locations as channel groups, at the price of
        # transposing batch and channels before and after: measured on CPU, that is not faster at any stage.
        parts = zip(x.split(counts), kernels.unbind(), strict=True)
        return torch.cat([self._convolve(part, kernel, self.bias, self.groups) for part, kernel in parts])

    def _convolve_each(self, x: Tensor, kernels: Tensor) -> Tensor:
        """Return one kernel a sample: locations become groups of channels of a single convolution, without any copy."""
        count = x.shape[0]
        bias = self.bias.repeat(count) if self.bias is not None else None
        out = self._convolve(x.flatten(0, 1).unsqueeze(0), kernels.flatten(0, 1), bias, count * self.groups)
        return out.squeeze(0).unflatten(0, (count, self.out_channels))

    def _convolve(self, x: Tensor, kernel: Tensor, bias: Tensor | None, groups: int) -> Tensor:
        return functional.conv3d(x, kernel, bias, self.stride, self.padding, self.dilation, groups)

    def extra_repr(self) -> str:
        """Return what ``repr`` shows."""
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"padding={self.padding}, num_experts={self.num_experts}, bias={self.bias is not None}"
        )


class ConditionalEncoder(nn.Module):
    """An encoder whose convolutions depend on the location of each sample.

    Args:
        encoder: a module that maps (B, C, z, y, x) to a tensor or a list of tensors, all with B first, and holds
            `ConditionalConv3d` layers; their contexts are replaced by one of this object.

    Raises:
        ValueError: ``encoder`` holds no `ConditionalConv3d`.
    """

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        layers = [module for module in encoder.modules() if isinstance(module, ConditionalConv3d)]
        if not layers:
            raise ValueError("The encoder holds no ConditionalConv3d; convert it with to_conditional first.")
        self.encoder = encoder
        self.context = LocationContext()
        for layer in layers:
            layer.context = self.context

    def forward(self, x: Tensor, locations: Tensor | LocationGroups) -> Tensor | list[Tensor]:
        """Encode each sample with the kernels of its location.

        Args:
            x: (B, C, z, y, x).
            locations: groups of samples that share a location, or (B, 3): every sample has its own kernel then, which
                is right for any batch, needs no answer from the device, and costs more.

        Returns:
            what the wrapped encoder returns.

        Raises:
            ValueError: ``locations`` does not fit the batch.
        """
        if not isinstance(locations, LocationGroups):
            locations = LocationGroups(locations, (1,) * x.shape[0])
        _check_points(locations.points)
        self.context.locations = locations
        try:
            return self.encoder(x)
        finally:
            self.context.locations = None


class UnconditionedEncoder(nn.Module):
    """A plain encoder that takes locations and ignores them: the ablation without location."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, x: Tensor, locations: Tensor | LocationGroups | None = None) -> Tensor | list[Tensor]:
        """Encode ``x`` (B, C, z, y, x); ``locations`` is not looked at."""
        return self.encoder(x)


#: both take a batch and its locations, and hold the encoder of the plans
LocatedEncoder = ConditionalEncoder | UnconditionedEncoder


def _check_points(points: Tensor) -> None:
    if points.ndim != 2 or points.shape[0] == 0 or points.shape[1] != 3:
        raise ValueError(f"Locations must be (B, 3) with B > 0, got {tuple(points.shape)}.")


def _triple(value: int | tuple[int, ...] | list[int]) -> tuple[int, ...]:
    """Return one integer for all three axes, or three."""
    value = (value,) * 3 if isinstance(value, int) else tuple(value)
    if len(value) != 3:
        raise ValueError(f"Expected one integer or three, got {value}.")
    return value
