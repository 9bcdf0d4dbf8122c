"""Bring a published model here: hf:OWNER/NAME, the address of a folder on a web server, or a folder.

Every file is checked against the publisher's checksums; pickles and unknown files are refused. What was fetched is kept
in a cache (NNUNET_ALICE_CACHE, ~/.cache/nnunet_alice) and used from there without a network. The folder that is printed
goes wherever a checkpoint goes: transfer, inspect, features, benchmark, -pretrained_weights of FineTuneTrainer.
"""

import argparse

EXAMPLE = "nnunet_alice fetch hf:owner/alice-chest-ct -d 4"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("source", help="hf:OWNER/NAME[@REVISION], https://HOST/FOLDER or a folder")
    parser.add_argument("--sha256", metavar="HEX", help="checksum of the folder's SHA256SUMS; needed for https://")
    parser.add_argument("--cache", metavar="FOLDER", help="folder for what is fetched")
    parser.add_argument("-d", dest="dataset", metavar="TARGET", help="give this labelled dataset the model's plans")
    parser.add_argument(
        "--pth", metavar="FILE", help="write the weights as .pth, too: for stock nnU-Net's -pretrained_weights"
    )


def run(args: argparse.Namespace) -> None:
    """Fetch, and print what to run next."""
    from nnunet_alice.checkpoints.loading import load_checkpoint
    from nnunet_alice.checkpoints.saving import save_checkpoint
    from nnunet_alice.nnunet_folders import dataset_number
    from nnunet_alice.publishing.fetch import fetch
    from nnunet_alice.publishing.target_plans import give_plans
    from nnunet_alice.words import pasteable

    folder = fetch(args.source, args.sha256, args.cache).resolve()
    print(f"Fetched and checked: {folder}")
    weights: object = folder
    trainer: tuple[str, ...] = ("-tr", "FineTuneTrainer")
    if args.pth:
        save_checkpoint(load_checkpoint(folder), args.pth)
        weights, trainer = args.pth, ()
        print(f"Written: {args.pth}")
    if args.dataset is None:
        print(f"What it is: {pasteable('nnunet_alice', 'inspect', folder)}")
        return
    configuration = load_checkpoint(folder)["pretraining"]["configuration"]
    given = give_plans(folder, args.dataset, configuration)
    number = dataset_number(given.dataset)
    if given.note:
        print(given.note)
    print(f"Plans: {given.file}; next:")
    print(pasteable("nnUNetv2_extract_fingerprint", "-d", number))
    print(pasteable("nnUNetv2_preprocess", "-d", number, "-plans_name", given.plans_name, "-c", configuration))
    train = ("nnUNetv2_train", number, configuration, 0, *trainer, "-p", given.plans_name)
    print(pasteable(*train, "-pretrained_weights", weights))
