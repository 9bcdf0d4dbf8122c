"""What errors say, word for word, and how to get them to say it: the rows of ``test_sentences.py``."""

from pathlib import Path

import numpy as np
import torch

from nnunet_alice.affine import Affine
from nnunet_alice.anatomy.atlas import prepare_atlas
from nnunet_alice.anatomy.geometry import compute_geometry
from nnunet_alice.anatomy.subjects import case_table, read_subjects
from nnunet_alice.benchmark.parsing import parse_settings
from nnunet_alice.benchmark.splits import partitions
from nnunet_alice.checkpoints.exporting import find_trainer
from nnunet_alice.checkpoints.inspection import describe_checkpoint
from nnunet_alice.checkpoints.loading import finite_weights, load_checkpoint, network_weights
from nnunet_alice.checkpoints.nnssl import unet_weights
from nnunet_alice.checkpoints.saving import save_checkpoint
from nnunet_alice.checkpoints.teacher import teacher_weights
from nnunet_alice.checkpoints.transfer import transfer_weights
from nnunet_alice.coordinates.atlas_file import open_atlas
from nnunet_alice.dataset import PreprocessedDataset
from nnunet_alice.features.patch_labels import read_patch_table
from nnunet_alice.features.probe_data import load_features
from nnunet_alice.files import read_json, read_table
from nnunet_alice.finetuning.parts import layer_groups
from nnunet_alice.importing.unlabelled import import_unlabelled
from nnunet_alice.matching.index import IndexStore
from nnunet_alice.matching.registry import open_matcher
from nnunet_alice.nnunet_folders import dataset_name, nnunet_folder, plain_name, plans_identifier
from nnunet_alice.phantoms.subject import make_subject
from nnunet_alice.planning.window import parse_window
from nnunet_alice.publishing.fetch import fetch
from nnunet_alice.targets.definitions import load_targets
from nnunet_alice.targets.labels import read_labels
from nnunet_alice.trainers import drasclr
from nnunet_alice.training.devices import share_batch_statistics
from nnunet_alice.training.variants import named_trainer
from support.tiny_networks import tiny_unet

WEIGHTS = {"network_weights": {"w": torch.ones(1)}}
WEIGHTS = {"network_weights": {"w": torch.ones(1)}}
BENCHMARK = {"dataset": 900, "labels": [1], "test": 2, "arms": {"scratch": None}}


def benchmark(**changes):
    return parse_settings({**BENCHMARK, **changes})


def opened(plans="nnUNetPlans", configuration="3d_fullres"):
    return PreprocessedDataset.find("Dataset900_Small", plans, configuration)


#: (call, sentence); paths are relative to the folder that the test makes
ROWS = [
    (
        lambda: read_json("gone.json"),
        "gone.json does not exist.",
    ),
    (
        lambda: read_json("cut.json"),
        "cut.json is not valid JSON (Expecting property name enclosed in double quotes: line 1 column 2 (char "
        "1)); delete it and run the step that writes it.",
    ),
    (
        lambda: read_table("gone.csv"),
        "gone.csv does not exist; give a CSV table.",
    ),
    (
        lambda: read_table("semicolons.csv"),
        "semicolons.csv has semicolons where commas are expected; save it with commas.",
    ),
    (
        lambda: plain_name("../x", "-p"),
        "-p is '../x', which is no plain name: choose letters, digits, - and _, no slash.",
    ),
    (
        lambda: plans_identifier("My__Plans", "-p"),
        "-p is 'My__Plans': nnU-Net splits names of models at two underscores; use one.",
    ),
    (
        lambda: dataset_name("Spleen"),
        "'Spleen' is neither a dataset number nor a name like Dataset900_NAME.",
    ),
    (
        lambda: dataset_name(7),
        "No dataset with number 7 in nnUNet_raw or nnUNet_preprocessed.",
    ),
    (
        lambda: opened("OtherPlans"),
        "nnUNet_preprocessed/Dataset900_Small has no plans OtherPlans.json but nnUNetPlans; name those with "
        "-p, or run: nnunet_alice plan -d 900",
    ),
    (
        lambda: opened(configuration="2d"),
        "nnUNetPlans.json has no configuration '2d'; it has: 3d_fullres.",
    ),
    (
        lambda: prepare_atlas(opened(), 1),
        "Dataset900_Small has only 1 preprocessed case; matching needs at least two.",
    ),
    (
        lambda: compute_geometry("c0", np.zeros((1, 8, 8, 8), np.float32), (1, 1, 1)),
        "Case c0: no body found in the preprocessed image; look at it, or leave the case out.",
    ),
    (
        lambda: compute_geometry("c0", np.full((1, 8, 8, 8), np.nan, np.float32), (1, 1, 1)),
        "Case c0: the preprocessed image holds NaN or Inf; mend the raw file and preprocess again.",
    ),
    (
        lambda: Affine(np.diag([1, 1, 0, 1])).inverse(),
        "An affine that flattens space cannot be inverted; register the case again.",
    ),
    (
        lambda: read_subjects("sub-[0-9]+", ["c0"]),
        "'sub-[0-9]+' is no file, and as a pattern it needs one group around what names the subject, for "
        "example '(sub-[0-9]+)_'.",
    ),
    (
        lambda: open_matcher(opened()),
        "No anatomy was prepared for nnUNet_preprocessed/Dataset900_Small/nnUNetPlans_3d_fullres; run: "
        "nnunet_alice anatomy -d 900 -p nnUNetPlans -c 3d_fullres",
    ),
    (
        lambda: open_matcher(opened(), name="embedding"),
        "No anatomy (embedding) was prepared for nnUNet_preprocessed/Dataset900_Small/nnUNetPlans_3d_fullres; "
        "run: nnunet_alice anatomy -d 900 -p nnUNetPlans -c 3d_fullres --method embedding",
    ),
    (
        lambda: IndexStore(opened()).fingerprint(),
        "nnUNet_preprocessed/Dataset900_Small/nnUNetPlans_3d_fullres_anatomy/embedding holds no usable index "
        "of descriptors; run: nnunet_alice anatomy -d 900 -p nnUNetPlans -c 3d_fullres --method embedding",
    ),
    (
        lambda: load_checkpoint("cut.pth"),
        "cut.pth is truncated or not a checkpoint (97); copy or download it again.",
    ),
    (
        lambda: load_checkpoint("tensor.pth"),
        "tensor.pth holds a Tensor instead of a checkpoint's dict.",
    ),
    (
        lambda: load_checkpoint("code.pth"),
        "code.pth was refused: opening it would run 'torch.nn.modules.linear.Linear', which is no plain data; "
        "nnunet_alice transfer and export open it with --trust, if you trust its author with your account.",
    ),
    (
        lambda: network_weights(load_checkpoint("other.pth"), "other.pth"),
        "other.pth has no 'network_weights' (it holds: state_dict, epoch); give a checkpoint of this package, "
        "nnU-Net or nnssl.",
    ),
    (
        lambda: finite_weights(load_checkpoint("nan.pth"), "nan.pth"),
        "nan.pth holds NaN or infinity in 1 of its 1 tensor (the first is 'encoder.w'): its training diverged; "
        "take an earlier checkpoint, or train again at a lower learning rate.",
    ),
    (
        lambda: describe_checkpoint("other.pth"),
        "other.pth was not written by a pretraining trainer of nnunet_alice; its weights may still fit: "
        "nnunet_alice transfer adapts other nnU-Net and nnssl checkpoints.",
    ),
    (
        lambda: save_checkpoint({"epochs": {1, 2}}, "new.pth"),
        "The checkpoint's entry ['epochs'] is a set; only tensors, numbers, strings, bytes, None, dicts, lists "
        "and tuples can be saved.",
    ),
    (
        lambda: unet_weights({"network_weights": {"encoder.layer1.w": torch.ones(1)}}, "resnet.pth"),
        "resnet.pth is not a U-Net of nnU-Net's kind: it has no tensors 'encoder.stages.*' but e.g. "
        "'encoder.layer1.w'; give a U-Net checkpoint.",
    ),
    (
        lambda: transfer_weights({}, tiny_unet(), parts="stem"),
        "--parts stem is not one of all, encoder.",
    ),
    (
        lambda: transfer_weights({"encoder.stages.0.0.convs.0.conv.weight": torch.ones(1)}, torch.nn.Linear(2, 2)),
        "The plans' network is not one of nnU-Net's U-Nets; transfer knows only those.",
    ),
    (
        lambda: find_trainer("NoSuchTrainer"),
        "No trainer 'NoSuchTrainer' is known here; look for a slip (nnunet_alice trainers --list), or set "
        "nnUNet_extTrainer to the folder that has it.",
    ),
    (
        lambda: open_atlas("gone.npz"),
        "gone.npz does not exist; give the pretraining's checkpoint_final.pth, atlas.json or atlas.npz.",
    ),
    (
        lambda: import_unlabelled("scans", 1000, name="Test", channels=["CT"]),
        "Dataset number 1000 is not between 1 and 999; choose a different one with -d.",
    ),
    (
        lambda: import_unlabelled("scans", 900, name="Te/st", channels=["CT"]),
        "Dataset name 'Te/st' may hold only letters, digits, _ and -.",
    ),
    (
        lambda: import_unlabelled("scans", 900, name="Test", channels=[]),
        "Name the channels, for instance --channel CT.",
    ),
    (
        lambda: fetch("hf:me"),
        "hf:me is not of the form hf:owner/name or hf:owner/name@revision.",
    ),
    (
        lambda: fetch("https://example.org/model"),
        "https://example.org/model needs --sha256: the checksum of its SHA256SUMS, which its publisher tells.",
    ),
    (
        lambda: fetch("pickled"),
        "pickled has no SHA256SUMS, so publish did not write it; pytorch_model.bin in it is a pickle, which "
        "transfer reads with care.",
    ),
    (
        lambda: load_features("gone.npz"),
        "gone.npz does not exist; write it with nnunet_alice features.",
    ),
    (
        lambda: read_patch_table("labels.csv", "kind"),
        "labels.csv has no column 'kind'; a table of patches has the case, its point as x_mm, y_mm, z_mm or "
        "x_vox, y_vox, z_vox, and 'kind'.",
    ),
    (
        lambda: load_targets("Dataset900_Small"),
        "Dataset900_Small has no targets.json; run: nnunet_alice targets -d 900 --table labels.csv --target "
        "COLUMN --task classification",
    ),
    (
        lambda: read_labels("labels.csv", ["sex"], "classification", ["c0"]),
        "labels.csv has no column 'sex'; it has: case, age.",
    ),
    (
        lambda: read_labels("labels.csv", ["age"], "regression", ["c1"]),
        "None of the dataset's 1 case has a value in labels.csv: the dataset has 'c1', the table 'c0'.",
    ),
    (
        lambda: layer_groups(tiny_unet(), 0.0),
        "The layer-wise decay is 0.0; it lies above 0 and at most at 1.",
    ),
    (
        lambda: share_batch_statistics(torch.nn.BatchNorm3d(1), torch.device("cpu")),
        "These plans have batch normalisation, which several processes can only share on GPUs; train in one "
        "process, or with plans that use instance normalisation.",
    ),
    (
        lambda: named_trainer("DrasCLRTrainer_9expert", vars(drasclr)),
        "DrasCLRTrainer has no ending '_9expert'; did you mean _<N>experts?",
    ),
    (
        lambda: make_subject(0, disease="flu"),
        "There is no phantom disease 'flu'; choose one of none, lesions, emphysema, fatty_liver.",
    ),
    (
        lambda: parse_window(["bones"]),
        "A window is lungs or two numbers such as -1024 240, not 'bones'.",
    ),
    (
        lambda: benchmark(label=[3]),
        "Unknown 'label' in settings; did you mean 'labels'?",
    ),
    (
        lambda: benchmark(arms={"a": {"checkpoints": "a.pth"}}),
        "No arm trains from scratch: add one without checkpoints, or name a 'baseline'.",
    ),
    (
        lambda: benchmark(draws=2.7),
        "'draws' has to be a whole number, not 2.7.",
    ),
    (
        lambda: benchmark(baseline="alice"),
        "The baseline 'alice' is not among the arms: scratch.",
    ),
    (
        lambda: partitions(benchmark(test={"folds": [0]}), [f"c{number}" for number in range(10)], None),
        "The dataset has no splits_final.json yet; give 'split' a file, or 'cases' a number of test cases.",
    ),
    (
        lambda: partitions(benchmark(labels=[31]), [f"c{number}" for number in range(10)], None),
        "'labels' asks for 31 cases; split 'fixed' has 8 to train on; lower it.",
    ),
    (
        lambda: import_unlabelled("empty", 901, name="Test", channels=["CT"]),
        "empty holds no volume; names have to end in .nii.gz, .nii, .nrrd, .mha, .mhd, .nhdr, .hdr, .gipl, .mnc or "
        ".mgz, or be DICOM.",
    ),
    (
        lambda: case_table(Path("one.csv"), "subject"),
        "one.csv has one column; it needs the columns case and subject.",
    ),
    (
        lambda: nnunet_folder("nnUNet_unset"),
        "The environment variable nnUNet_unset is not set; run: export nnUNet_unset=/path/to/nnUNet_unset",
    ),
    (
        lambda: teacher_weights({**WEIGHTS, "pretraining": {"trainer": "MIMTrainer"}}, "mim.pth"),
        "mim.pth holds no teacher (it is of MIMTrainer); checkpoints of AliceTrainer and DrasCLRTrainer do.",
    ),
]

#: (arguments of nnunet_alice, sentence)
COMMANDS = [
    (
        "plan -d 900 --part 1/2 --no_preprocess",
        "--part shares the preprocessing that --no_preprocess leaves out; give only one of them.",
    ),
    (
        "plan -d 900 --target 901 -pl AlicePlanner",
        "--target brings its own plans and -pl makes new ones; give only one of them.",
    ),
    (
        "features -d 900 --checkpoint c.pth -o out.csv",
        "-o must end in .npz for --level case, got out.csv.",
    ),
    (
        "probe --features f.npz --task regression --target age",
        "Name the table of labels with --table.",
    ),
    (
        "locate -d 900 -o folder",
        "With -d, -o is the number of the new dataset, not 'folder'.",
    ),
    (
        "locate -i scans -o out",
        "With -i, name the folder to write with -o and the atlas of the training with --atlas.",
    ),
    (
        "export -i empty -o out",
        "empty has no plans.json and no dataset.json: give the folder <trainer>__<plans>__<configuration> that "
        "holds the folds.",
    ),
    (
        "extend -i empty --epochs 4",
        "empty/checkpoint_final.pth does not exist.",
    ),
    (
        "transfer -i gone.pth -d 900 -p nnUNetPlans -c 3d_fullres -o out.pth",
        "gone.pth does not exist.",
    ),
    (
        "publish -i gone.pth -o out --name n --licence mit",
        "gone.pth does not exist.",
    ),
    (
        "fetch nothing",
        "nothing is no folder, no address and no hf:owner/name; give one of these.",
    ),
    (
        "report -i empty",
        "empty holds no benchmark (no settings.json); run nnunet_alice benchmark first.",
    ),
    (
        "benchmark gone.yaml -o out",
        "gone.yaml does not exist.",
    ),
    (
        "demo --data scans -o out",
        "scans is no dataset in nnU-Net's format: it has no dataset.json (beside imagesTr and labelsTr).",
    ),
    (
        "targets -d 900 --table labels.csv --target age --task regression --event e",
        "--event goes with --task survival: the column that holds 1 for an event and 0 for censored.",
    ),
    (
        "import -i gone -d 900 -n Test --channel CT",
        "gone is not a folder.",
    ),
    (
        "convert_btcv -i empty -d 17",
        "empty has no folders Training/img and Training/label; give the RawData folder of Abdomen/RawData.zip.",
    ),
    (
        "predict_targets -i scans -m empty -o out.csv",
        "empty holds no fold_*/checkpoint_final.pth; give the folder of a finished training with -m.",
    ),
    (
        "train 900 3d_fullres all -tr NoSuchTrainer",
        "There is no trainer of that name; nnunet_alice trainers --list names ours.",
    ),
    (
        "inspect gone.pth",
        "gone.pth does not exist.",
    ),
    (
        "match -d 900 -p nnUNetPlans -c 3d_fullres --from c0 --point 1 2 3",
        "No case could be matched; see the messages above.",
    ),
    (
        "anatomy -d 900 -p nnUNetPlans -c 3d_fullres --atlas nobody",
        "Dataset900_Small has only 1 preprocessed case; matching needs at least two.",
    ),
    (
        "evaluate_matching -d 900 -p nnUNetPlans -c 3d_fullres",
        "Matching needs at least two cases, but there are 1.",
    ),
]
