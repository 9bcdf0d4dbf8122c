"""What the benchmarks of planted disease share: public commands, pretraining, encoders that were never trained."""

import os
from dataclasses import replace
from pathlib import Path

import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet

from nnunet_alice.cli.common import SOME_FAILED
from nnunet_alice.cli.main import main
from nnunet_alice.features.encoders import TrainedEncoder, open_encoder
from nnunet_alice.methods.drasclr.conditional import UnconditionedEncoder
from nnunet_alice.methods.drasclr.conversion import to_conditional
from nnunet_alice.methods.drasclr.representation import PatchRepresentation
from nnunet_alice.methods.unets import encoder_of
from nnunet_alice.pretraining.drasclr import DrasCLRPretrainingSettings

CONFIGURATION = "3d_fullres"


def command(*words: str) -> None:
    """Run ``nnunet_alice ...``; stop where it fails."""
    status = main(words)
    if status not in (0, SOME_FAILED):
        raise SystemExit(status)


def train(trainer: str, dataset: str, plans: str, fold: int | str) -> Path:
    """Return the checkpoint of a trainer by its whole name; train what is missing on the CPU, continue what stopped."""
    from nnunetv2.run.run_training import run_training

    folder = Path(os.environ["nnUNet_results"], dataset, f"{trainer}__{plans}__{CONFIGURATION}", f"fold_{fold}")
    if not (folder / "checkpoint_final.pth").is_file():
        run_training(
            dataset,
            CONFIGURATION,
            fold,
            trainer,
            plans,
            continue_training=(folder / "checkpoint_latest.pth").is_file(),
            device=torch.device("cpu"),
        )
    return folder / "checkpoint_final.pth"


def untrained(checkpoint: Path, seed: int, conditional: bool) -> TrainedEncoder:
    """Return the encoder of a DrasCLR checkpoint as training starts from it, plain or location-conditioned."""
    plain = open_encoder(checkpoint, untrained=True)
    network = encoder_of(plain.module)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network.apply(PlainConvUNet.initialize)
    generator = torch.Generator().manual_seed(seed)
    experts, gain = DrasCLRPretrainingSettings.num_experts, DrasCLRPretrainingSettings.location_gain
    module = (
        to_conditional(network, experts, location_gain=gain, generator=generator).eval()
        if conditional
        else UnconditionedEncoder(network).eval()
    )
    represent = PatchRepresentation(module, network.output_channels[-1])
    return replace(plain, module=module, represent=represent, conditional=conditional)
