"""Networks of plans that a method cannot pretrain, told before anything is prepared."""

from collections.abc import Sequence

from torch import nn

from nnunet_alice.errors import InputError
from nnunet_alice.methods.unets import decoder_of, encoder_of, has_batch_norm
from nnunet_alice.planning.plans import total_stride
from nnunet_alice.words import counted

#: how plans are mended
REMEDY = "take plans of nnunet_alice plan or of nnU-Net's own planners"


def check_network(
    network: nn.Module,
    *,
    min_stages: int = 2,
    patch_size: Sequence[int] | None = None,
    full_resolution: bool = False,
    batch_norm: bool = True,
) -> None:
    """Make sure that a method can train a network.

    Args:
        network: of the plans.
        min_stages: that it has to have.
        patch_size: voxels that go through encoder and decoder, (z, y, x); None where only the encoder is used.
        full_resolution: the output has to be as large as the input.
        batch_norm: whether it may have batch normalisation.

    Raises:
        InputError: the method cannot.
    """
    name, decoder = type(network).__name__, getattr(network, "decoder", None)
    parts = ("stages", "transpconvs", "seg_layers")
    if not hasattr(network, "encoder") or not all(hasattr(decoder, part) for part in parts):
        raise InputError(
            f"The plans' network {name} is no U-Net of nnU-Net's kind; {REMEDY} (PlainConvUNet, ResidualEncoderUNet)."
        ).about(value=name)
    if not any(isinstance(module, nn.Conv3d) for module in network.modules()):
        raise InputError(f"The plans' network {name} has no 3D convolution; {REMEDY}.").about(value=name)
    stages = len(decoder_of(network).stages) + 1
    if stages < min_stages:
        raise InputError(
            f"The plans' network has {counted(stages, 'stage')}, and this pretraining needs at least {min_stages}; "
            f"{REMEDY}, with a larger patch."
        ).about(value=stages)
    if not batch_norm and has_batch_norm(network):
        raise InputError(
            "The plans' network has batch normalisation, which tells this pretraining the answer; "
            "take plans with instance normalisation."
        ).about(value="batch normalisation")
    strides = encoder_of(network).strides
    if full_resolution and total_stride(strides[:1]) != (1, 1, 1):
        first = "x".join(map(str, total_stride(strides[:1])))
        raise InputError(
            f"The plans' network pools by {first} in its first stage, and its output is smaller than the image; "
            f"{REMEDY}."
        ).about(value=first)
    if patch_size is not None and any(n % s for n, s in zip(patch_size, total_stride(strides), strict=True)):
        patch, stride = ("x".join(map(str, size)) for size in (patch_size, total_stride(strides)))
        raise InputError(
            f"The plans' patch_size {patch} is no multiple of its pooling ({stride}); change it in the plans."
        ).about(option="patch_size", value=patch)
