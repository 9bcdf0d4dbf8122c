"""Put pretrained weights into a network of your own, and see what became of every tensor.

    python examples/transfer_weights.py checkpoint_final.pth

The network may have other channels, depth, kernels or strides than the pretrained one. For a file that
``nnUNetv2_train -pretrained_weights`` takes, use ``nnunet_alice.transfer_checkpoint``.
"""

import argparse

import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet

import nnunet_alice


def main(checkpoint: str, channels: int = 2, classes: int = 5) -> torch.nn.Module:
    """Return a deeper network for two channels that starts from the pretrained weights."""
    weights = torch.load(checkpoint, weights_only=True, map_location="cpu")["network_weights"]
    network = PlainConvUNet(
        *(channels, 4, (8, 16, 32, 64), torch.nn.Conv3d, 3, (1, 2, 2, 2), 1, classes, 1),
        **{"conv_bias": True, "norm_op": torch.nn.InstanceNorm3d, "norm_op_kwargs": {"affine": True}},
    )
    transfer = nnunet_alice.transfer_weights(weights, network)
    print(transfer.table[["tensor", "source_shape", "target_shape", "status", "how"]].to_string(index=False))
    print(f"{transfer.share('encoder'):.0%} of the encoder's parameters stem from {checkpoint}.")
    return network


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    main(parser.parse_args().checkpoint)
