"""From a plain encoder to a location-conditioned one, and back.

Both ways walk the `torch.nn.Conv3d` layers of any encoder (nnU-Net's PlainConvEncoder, ResidualEncoder and others)
and replace them; everything else is copied. A layer that the encoder registers twice (nnU-Net's blocks hold each
convolution under two names) stays one layer.
"""

import copy
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from nnunet_alice.methods.drasclr.conditional import ConditionalConv3d, ConditionalEncoder


def to_conditional(
    encoder: nn.Module,
    num_experts: int = 8,
    *,
    spread: float = 1.0,
    location_gain: float = 0.0,
    generator: torch.Generator | None = None,
) -> ConditionalEncoder:
    """Return location-conditioned copy of a plain encoder that starts from its weights.

    With ``r_e = 1/2`` the initial routing (bias 0) and ``S`` its sum over the E experts, each expert starts as

        ``W_e = W_plain / S + D_e``,  ``sum_e D_e = 0``,

    so that the mixture is the plain kernel. ``D_e`` is noise of the plain kernel's own standard deviation: experts that
    start equal would get equal gradients and stay equal for ever. At ``spread`` 1 an expert has about the standard
    deviation of the plain kernel. In the paper, too, each starts like a convolution of its own.

    Args:
        encoder: any module with `torch.nn.Conv3d` layers; it is left as it is.
        num_experts: E.
        spread: size of ``D_e`` in standard deviations of each layer's plain kernel; 0 makes all experts equal.
        location_gain: 0 (default) starts with ``A = 0``: outputs are those of the plain encoder at every location, and
            locations come in through the gradient. 1 draws ``A`` like a linear layer's (the paper's start): outputs
            are those of the plain encoder at location (0, 0, 0) and differ elsewhere from the first step.
        generator: random source; torch's global one if None.

    Returns:
        the conditional encoder, on the device and in the dtype of ``encoder``; train or eval mode is kept.

    Raises:
        ValueError: no `torch.nn.Conv3d` in ``encoder`` (a 2D configuration?), one that does not pad with zeros, or
            ``num_experts`` below 1.
    """

    def convert(layer: nn.Module) -> nn.Module | None:
        if not isinstance(layer, nn.Conv3d):
            return None
        return _conditional_layer(layer, num_experts, spread, location_gain, generator)

    converted = _replace_layers(encoder, convert)
    if not any(isinstance(m, ConditionalConv3d) for m in converted.modules()):
        raise ValueError("The encoder has no torch.nn.Conv3d to convert; location conditioning needs a 3D network.")
    return ConditionalEncoder(converted).train(encoder.training)


def to_plain(conditional: ConditionalEncoder, locations: Tensor) -> nn.Module:
    """Return plain copy of a conditional encoder: ``W_plain = sum_e mean_p(r_e(p)) W_e``.

    Exact when the routing is the same at all ``locations``; else an approximation, whose error the caller measures
    by comparing features.

    Args:
        conditional: the conditional encoder; it is left as it is.
        locations: (N, 3), the training locations that the routing is averaged over.

    Returns:
        the wrapped encoder with `torch.nn.Conv3d` layers: same keys and shapes as the encoder it was made from.

    Raises:
        ValueError: ``locations`` is not (N, 3) with N > 0.
    """
    if locations.ndim != 2 or locations.shape[0] == 0 or locations.shape[1] != 3:
        raise ValueError(f"Locations must be (N, 3) with N > 0, got {tuple(locations.shape)}.")

    def convert(layer: nn.Module) -> nn.Module | None:
        return _plain_layer(layer, locations) if isinstance(layer, ConditionalConv3d) else None

    return _replace_layers(conditional.encoder, convert).train(conditional.training)


def plain_state(state: Mapping[str, Tensor], locations: Tensor) -> dict[str, Tensor]:
    """Return what `to_plain` makes of the tensors of a conditional encoder, by their names.

    Args:
        state: of the encoder that a `ConditionalEncoder` wraps.
        locations: (N, 3), the training locations that the routing is averaged over.
    """
    plain = {}
    for name, value in state.items():
        layer, _, kind = name.rpartition(".")
        if kind == "experts":
            weight, bias = state[f"{layer}.routing_weight"], state[f"{layer}.routing_bias"]
            routing = torch.sigmoid(locations.to(weight) @ weight.T + bias)
            plain[f"{layer}.weight"] = _mixed(value, routing)
        elif kind not in ("routing_weight", "routing_bias"):
            plain[name] = value
    return plain


def _replace_layers(root: nn.Module, convert: Callable[[nn.Module], nn.Module | None]) -> nn.Module:
    """Copy of ``root`` with each layer that ``convert`` answers replaced by the answer, under all of its names.

    ``deepcopy`` looks up its memo by identity before it copies an object. Entering the new layers there replaces them
    wherever they are referred to, submodule or plain attribute, without copying the old ones.
    """
    memo: dict[int, nn.Module] = {}
    for layer in root.modules():
        replacement = convert(layer)
        if replacement is not None:
            memo[id(layer)] = replacement
    return copy.deepcopy(root, memo)


@torch.no_grad()
def _conditional_layer(
    plain: nn.Conv3d, num_experts: int, spread: float, location_gain: float, generator: torch.Generator | None
) -> ConditionalConv3d:
    if plain.padding_mode != "zeros" or isinstance(plain.padding, str):
        raise ValueError(f"Only convolutions padded with a number of zeros can be converted, got {plain}.")
    layer = ConditionalConv3d(
        plain.in_channels,
        plain.out_channels,
        plain.kernel_size,
        plain.stride,
        plain.padding,
        plain.dilation,
        plain.groups,
        plain.bias is not None,
        num_experts=num_experts,
        generator=generator,
    )
    # Drawn on the CPU, so that a seed gives the same encoder on every device; in double precision, so that the mixture
    # is off by no more than the rounding of the experts.
    layer.double()
    noise = torch.empty_like(layer.experts).normal_(generator=generator)
    noise -= noise.mean(dim=0)
    kernel = plain.weight.detach().double().cpu()
    deviation = kernel.std() if kernel.numel() > 1 else kernel.abs().mean()
    initial_routing = 0.5
    layer.experts.copy_(kernel / (num_experts * initial_routing) + spread * deviation * noise)
    layer.routing_bias.zero_()
    layer.routing_weight.mul_(location_gain)
    if plain.bias is not None and layer.bias is not None:
        layer.bias.copy_(plain.bias)
    for parameter in layer.parameters():
        parameter.requires_grad_(plain.weight.requires_grad)
    return layer.to(plain.weight.device, plain.weight.dtype).train(plain.training)


@torch.no_grad()
def _plain_layer(layer: ConditionalConv3d, locations: Tensor) -> nn.Conv3d:
    plain = nn.utils.skip_init(
        nn.Conv3d,
        layer.in_channels,
        layer.out_channels,
        layer.kernel_size,
        layer.stride,
        layer.padding,
        layer.dilation,
        layer.groups,
        layer.bias is not None,
        device=layer.experts.device,
        dtype=layer.experts.dtype,
    )
    plain.weight.copy_(_mixed(layer.experts, layer.routing(locations.to(layer.experts.device))))
    if layer.bias is not None:
        plain.bias.copy_(layer.bias)
    plain.requires_grad_(layer.experts.requires_grad)
    return plain.train(layer.training)


def _mixed(experts: Tensor, routing: Tensor) -> Tensor:
    """Return experts (E, ...) weighted by their routing (N, E), averaged over N locations."""
    return torch.einsum("e,eoizyx->oizyx", routing.double().mean(dim=0).to(experts.dtype), experts)
