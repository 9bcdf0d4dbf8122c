"""Pretrain from Python: a folder of unlabelled scans in, a checkpoint for nnU-Net out.

    python examples/pretrain.py /data/unlabelled_ct --dataset_id 900 --trainer AliceTrainer_100epochs

nnU-Net's three folders have to be set. Every step does only what is missing, so the script can be run again.
"""

import argparse
import os
from pathlib import Path

import torch
from nnunetv2.run.run_training import run_training

import nnunet_alice
import nnunet_alice.trainers
from nnunet_alice.planners.alice import AlicePlanner
from nnunet_alice.planning.fingerprint import ensure_fingerprint
from nnunet_alice.planning.plans import plan_from_data
from nnunet_alice.planning.preprocessing import preprocess_cases


def main(folder: str, dataset_id: int, trainer: str, device: str = "cuda", processes: int = 4) -> Path:
    """Return the checkpoint."""
    os.environ["nnUNet_extTrainer"] = str(Path(nnunet_alice.trainers.__file__).parent)
    report = nnunet_alice.import_unlabelled(
        folder, dataset_id, name="Unlabelled", channels=["CT"], num_processes=processes
    )
    name = Path(report.folder).name
    ensure_fingerprint(name, processes)
    plans = plan_from_data(name, AlicePlanner).plans_name
    preprocess_cases(name, plans, "3d_fullres", processes)
    nnunet_alice.prepare_atlas(nnunet_alice.open_dataset(name, plans), processes)
    run_training(name, "3d_fullres", "all", trainer, plans, device=torch.device(device))
    run = Path(os.environ["nnUNet_results"], name, f"{trainer}__{plans}__3d_fullres", "fold_all")
    return run / "checkpoint_final.pth"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--dataset_id", type=int, default=900)
    parser.add_argument("--trainer", default="AliceTrainer")
    parser.add_argument("--device", default="cuda")
    print(main(**vars(parser.parse_args())))
