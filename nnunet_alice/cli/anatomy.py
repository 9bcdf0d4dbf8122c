"""Find out where in the body every preprocessed case lies, so that views of different cases can be matched.

--method atlas (default) registers every case to one atlas case: an affine map, then a deformation, on a coarse grid.
Cases whose registration fails or is poor are named and left out of matching. Run again, it does what is missing.
Landmarks are laid on the atlas too, for DrasCLR; those that are there are kept unless other ones are asked for.

--method embedding computes learned descriptors of every case with a network of AnatomicalEmbeddingTrainer. It stores
them as one small index a case (at most 10 MB). It also finds counterparts where fields of view differ. Where both are
prepared, views are matched by the one whose matches look more alike in the images.
"""

import argparse
from typing import TYPE_CHECKING

from nnunet_alice.cli.common import name_some, positive, say_outcomes
from nnunet_alice.parts import add_part_argument
from nnunet_alice.words import counted

if TYPE_CHECKING:
    from nnunet_alice.anatomy.atlas_files import AtlasReport
    from nnunet_alice.dataset import PreprocessedDataset

EXAMPLE = "nnunet_alice anatomy -d 900 -p nnUNetPlans -c 3d_fullres -np 8"
RESUMES = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("-d", required=True, metavar="DATASET", help="dataset number or name")
    parser.add_argument("-p", default="nnUNetPlans", metavar="PLANS", help="plans identifier (default: %(default)s)")
    parser.add_argument("-c", default="3d_fullres", metavar="CONFIGURATION", help="default: %(default)s")
    parser.add_argument("-np", type=positive(int), default=4, metavar="N", help="processes (default: %(default)s)")
    parser.add_argument("--method", choices=["atlas", "embedding"], default="atlas", help="default: %(default)s")
    parser.add_argument(
        "--checkpoint",
        metavar="FILE",
        help="embedding: a checkpoint of AnatomicalEmbeddingTrainer (default: the final one of these plans)",
    )
    parser.add_argument("-device", metavar="DEVICE", help="embedding: cpu, cuda, cuda:1, ... (default: a GPU if any)")
    parser.add_argument("--atlas", metavar="CASE", help="case that becomes the atlas (default: the most typical one)")
    parser.add_argument(
        "--landmark_patch_mm", type=positive(float), metavar="MM", help="edge of a patch (default for people: 32)"
    )
    parser.add_argument(
        "--landmark_step_mm", type=positive(float), metavar="MM", help="their distance (default for people: 26)"
    )
    parser.add_argument(
        "--roi",
        metavar="REGION",
        help="where landmarks are laid: body (default), lungs (found on CT), label:N or a mask file of the atlas case",
    )
    parser.add_argument(
        "--register_by",
        choices=["body", "lungs"],
        help="what cases are registered to the atlas by (default: as before, or body)",
    )
    parser.add_argument(
        "--subjects",
        metavar="CSV|PATTERN",
        help="which cases are scans of one person: a table with the columns case and subject, or a regular expression "
        "whose group finds the person in a case's name, e.g. '(sub-[0-9]+)_'",
    )
    parser.add_argument(
        "--across_modalities",
        action="store_true",
        help="one atlas for cases of all modalities, for AliceTrainer_acrossModalities (default: one for each)",
    )
    add_part_argument(parser)
    parser.add_argument("--overwrite", action="store_true", help="do everything again, body masks too")


def run(args: argparse.Namespace) -> int:
    """Prepare the atlas or the indices, draw them, say how it went and what to run next."""
    _check_before_work(args)
    return _index(args) if args.method == "embedding" else _register(args)


def _check_before_work(args: argparse.Namespace) -> None:
    """Refuse wrong options before registration takes its hours."""
    from nnunet_alice.errors import InputError
    from nnunet_alice.matching.atlas_landmarks import check_region

    others = {
        "atlas": {"--checkpoint": args.checkpoint, "-device": args.device},
        "embedding": {
            "--atlas": args.atlas,
            "--landmark_patch_mm": args.landmark_patch_mm,
            "--landmark_step_mm": args.landmark_step_mm,
            "--roi": args.roi,
        },
    }
    for option, value in others[args.method].items():
        if value is not None:
            other = next(method for method in others if method != args.method)
            raise InputError(f"{option} belongs to --method {other}, not to {args.method}; leave it out.").about(
                option=option, value=args.method
            )
    if args.roi is not None:
        check_region(args.roi)


def _index(args: argparse.Namespace) -> int:
    """Index every case with a trained embedding."""
    import torch

    from nnunet_alice.dataset import PreprocessedDataset
    from nnunet_alice.errors import InputError
    from nnunet_alice.matching.index import IndexStore
    from nnunet_alice.matching.index_dataset import index_dataset

    dataset = PreprocessedDataset.find(args.d, args.p, args.c)
    try:
        device = None if args.device is None else torch.device(args.device)
    except RuntimeError:
        raise InputError(f"There is no device '{args.device}'; use cpu or cuda.").about(value=args.device) from None
    report = index_dataset(dataset, args.checkpoint, device, args.overwrite, args.part)
    print(f"Embedding of {report.checkpoint}.")
    status = say_outcomes(dataset.name, report.outcomes, "indexed", IndexStore(dataset).folder, args.part)
    if args.part is not None:
        return status
    if report.calibration is None:
        print("Fewer than two cases have an index: nothing can be matched.")
        return 1
    calibration = report.calibration
    came_back = (
        f"Of {calibration.points} points matched to a different case and back, {calibration.returned:.0%} came back "
        f"within {calibration.tolerance_mm:.1f} mm."
    )
    if calibration.finds_nothing:
        print(f"{came_back} No score tells which, so no match is trusted: train the embedding longer.")
        return 1
    print(
        f"{came_back} Matches are trusted from a score of {calibration.threshold:.3f} on: "
        f"{calibration.accepted:.0%} of all, of which {calibration.returned_of_accepted:.0%} came back."
    )
    arguments = f"-d {dataset.number} -p {args.p} -c {args.c}"
    print(
        "Look at matches, or measure them:\n"
        f"  nnunet_alice match {arguments} --from {dataset.cases()[0]} --point Z Y X --to all\n"
        f"  nnunet_alice evaluate_matching {arguments}"
    )
    _print_next(dataset)
    return status


def _register(args: argparse.Namespace) -> int:
    """Register every case to the atlas."""
    from nnunet_alice.anatomy.atlas_files import OK
    from nnunet_alice.dataset import PreprocessedDataset
    from nnunet_alice.errors import InputError

    dataset = PreprocessedDataset.find(args.d, args.p, args.c)
    dataset = dataset.together() if args.across_modalities else dataset
    _note_subjects(args, dataset)
    parts = dataset.parts
    reports = [_register_one(args, part) for part in parts if len(parts) == 1 or _takes_part(args, part)]
    if not reports and args.atlas is not None:
        raise InputError(f"There is no preprocessed case '{args.atlas}' in {dataset.folder}; check --atlas.").about(
            case=args.atlas, path=dataset.folder, option="--atlas"
        )
    status = max((status for _, status in reports), default=0)
    if args.part is not None:
        return status
    usable = [report for report, _ in reports if len(report.named(OK)) > 1]
    if not usable:
        print("Too few cases can be matched: name a better atlas with --atlas CASE.")
        return 1
    if len(parts) == 1:
        _lay_landmarks(args, dataset)
    else:
        print("No landmarks were laid: DrasCLR needs one atlas for all cases; --across_modalities makes it.")
    _print_next(dataset)
    return status


def _takes_part(args: argparse.Namespace, part: "PreprocessedDataset") -> bool:
    """Return whether a modality has cases to register; with --atlas only the one of that case."""
    cases = part.cases()
    if len(cases) < 2:
        print(f"{part.modality}: {counted(len(cases), 'case')}, too few to match; both of its views come from itself.")
        return False
    return args.atlas is None or args.atlas in cases


def _register_one(args: argparse.Namespace, dataset: "PreprocessedDataset") -> tuple["AtlasReport", int]:
    """Register the cases of a dataset, or of one of its modalities, and draw them; return report and exit status."""
    from nnunet_alice.anatomy.atlas import prepare_atlas
    from nnunet_alice.anatomy.atlas_files import POOR, AtlasFiles
    from nnunet_alice.pictures.atlas import draw_atlas

    report = prepare_atlas(
        dataset, args.np, atlas_case=args.atlas, overwrite=args.overwrite, region=args.register_by, part=args.part
    )
    which = dataset.name if dataset.modality is None else f"{dataset.name}, {dataset.modality}"
    done = f"registered to the atlas {report.atlas_case}"
    status = say_outcomes(which, report.outcomes, done, AtlasFiles(dataset).report_file, args.part)
    name_some(POOR, [(record.case, record.reason) for record in report.named(POOR)])
    if args.part is None:
        print(f"Picture (look at it): {draw_atlas(dataset, report)}")
    return report, status


def _note_subjects(args: argparse.Namespace, dataset: "PreprocessedDataset") -> None:
    """Keep which cases are of one person, or say that names look as if some were."""
    from nnunet_alice.anatomy.subjects import likely_repeats, load_subjects, read_subjects, save_subjects

    cases = dataset.cases()
    if args.subjects is not None:
        subjects = read_subjects(args.subjects, cases)
        save_subjects(dataset, subjects)
        print(f"{len(subjects)} of {counted(len(cases), 'case')} are scans of {len(set(subjects.values()))} subjects.")
    elif not load_subjects(dataset) and (alike := likely_repeats(cases)) is not None:
        print(
            f"{alike[0]} and {alike[1]} look like two scans of one person, and DrasCLR would tell them apart as two; "
            "name persons with --subjects."
        )


def _print_next(dataset: "PreprocessedDataset") -> None:
    """Print by what views will be matched, and the commands that train with it."""
    from nnunet_alice.dataset import TOGETHER
    from nnunet_alice.matching.registry import open_matcher

    matcher = open_matcher(dataset)
    print(matcher.why or f"Views will be matched by the {matcher.name} ({counted(len(matcher.cases), 'case')}).")
    together = "_acrossModalities" if dataset.modality == TOGETHER else ""
    train = dataset.pretraining_command(f"AliceTrainer{together}")
    print(f"Next:\n  export nnUNet_extTrainer=$(nnunet_alice trainers)\n  {train}")


def _lay_landmarks(args: argparse.Namespace, dataset: "PreprocessedDataset") -> None:
    """Lay landmarks, draw them and say how many cases show them."""
    from nnunet_alice.anatomy.atlas import PreparedAtlas
    from nnunet_alice.errors import InputError
    from nnunet_alice.matching.atlas_landmarks import prepare_landmarks
    from nnunet_alice.pictures.landmarks import draw_landmarks

    asked = (args.landmark_patch_mm, args.landmark_step_mm, args.roi)
    try:
        report = prepare_landmarks(dataset, *asked, args.overwrite)
    except InputError as error:
        if asked != (None, None, None):
            raise
        print(f"No landmarks were laid, and only DrasCLR needs them: {error}")
        return
    landmarks, seen, prepared = report.landmarks, report.seen, PreparedAtlas.open(dataset)
    atlas, picture = prepared.geometry, prepared.files.landmarks_picture
    title = f"{dataset.name}: {counted(len(landmarks), 'landmark')} on {atlas.case}, region {report.region}"
    draw_landmarks(atlas, landmarks.points_mm, seen, report.cases, landmarks.patch_mm, picture, title)
    unused = int((seen < 2).sum())
    print(
        f"{counted(len(landmarks), 'landmark')} {'kept' if report.kept else 'laid'} (region {report.region}, patches "
        f"of {landmarks.patch_mm:g} mm, {landmarks.step_mm:g} mm apart): of {counted(report.cases, 'case')}, "
        f"{int(seen.min())} to {int(seen.max())} show a landmark, {seen.mean():.1f} on average; "
        f"{counted(unused, 'landmark is', 'landmarks are')} shown by fewer than two cases and not used.\n"
        f"Picture (look at it): {picture}\nLandmarks: {prepared.files.landmarks_file}"
    )
