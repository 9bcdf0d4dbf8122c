"""Small networks of nnU-Net's two families for tests."""

from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
from torch import nn

COMMON = {
    "conv_op": nn.Conv3d,
    "conv_bias": True,
    "norm_op": nn.InstanceNorm3d,
    "norm_op_kwargs": {"eps": 1e-5, "affine": True},
    "nonlin": nn.LeakyReLU,
    "nonlin_kwargs": {"inplace": True},
    "deep_supervision": False,
}


def tiny_unet(family: str = "plain", channels: int = 1, strides=(1, 2, 2), features=(4, 8, 12)) -> nn.Module:
    """A U-Net that reconstructs its input's channels; ``family`` is ``plain`` or ``residual``."""
    stages = len(features)
    shape = {
        "input_channels": channels,
        "n_stages": stages,
        "features_per_stage": features,
        "kernel_sizes": 3,
        "strides": strides,
        "num_classes": channels,
        "n_conv_per_stage_decoder": (1,) * (stages - 1),
    }
    if family == "plain":
        return PlainConvUNet(**shape, n_conv_per_stage=(1,) * stages, **COMMON)
    return ResidualEncoderUNet(**shape, n_blocks_per_stage=(1,) * stages, **COMMON)
