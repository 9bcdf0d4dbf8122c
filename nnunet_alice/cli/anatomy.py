"""Find out where in the body every preprocessed case lies, so that views of different cases can be matched.

Registers every case to one atlas case (affine, on a coarse grid) and stores the outcome beside the preprocessed data.
Cases whose registration fails or is poor are named and left out of matching. Run again, it does what is missing.
Landmarks are laid on the atlas too, for DrasCLR; those that are there are kept unless other ones are asked for.
"""

import argparse

EXAMPLE = "nnunet_alice anatomy -d 900 -p nnUNetPlans -c 3d_fullres -np 8"
#: Failed and poor cases named on screen; the report has all.
_NAMED = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument("-d", required=True, metavar="DATASET", help="dataset number or name")
    parser.add_argument("-p", default="nnUNetPlans", metavar="PLANS", help="plans identifier (default: %(default)s)")
    parser.add_argument("-c", default="3d_fullres", metavar="CONFIGURATION", help="default: %(default)s")
    parser.add_argument("-np", type=_positive, default=4, metavar="N", help="processes (default: %(default)s)")
    parser.add_argument("--method", choices=["atlas"], default="atlas", help="default: %(default)s")
    parser.add_argument("--atlas", metavar="CASE", help="case that becomes the atlas (default: the most typical one)")
    parser.add_argument("--landmark_patch_mm", type=float, metavar="MM", help="edge of a patch (default: 32)")
    parser.add_argument("--landmark_step_mm", type=float, metavar="MM", help="distance of landmarks (default: 26)")
    parser.add_argument(
        "--roi",
        metavar="REGION",
        help="where landmarks are laid: body (default), label:N of the atlas case, or a mask file of the atlas case",
    )
    parser.add_argument("--overwrite", action="store_true", help="do everything again, body masks too")


def run(args: argparse.Namespace) -> int:
    """Prepare the atlas, draw it, say how it went and what to run next."""
    from nnunet_alice.anatomy.atlas import prepare_atlas
    from nnunet_alice.anatomy.atlas_files import FAILED, OK, POOR, AtlasFiles
    from nnunet_alice.nnunet_folders import PreprocessedDataset
    from nnunet_alice.pictures.atlas import draw_atlas

    dataset = PreprocessedDataset.find(args.d, args.p, args.c)
    report = prepare_atlas(dataset, args.np, args.atlas, args.overwrite)
    picture = draw_atlas(dataset, report)
    counts = ", ".join(f"{len(report.named(status))} {status}" for status in (OK, POOR, FAILED))
    print(f"{dataset.name}: registered to the atlas {report.atlas_case}: {counts}.")
    for status in (POOR, FAILED):
        records = report.named(status)
        for record in records[:_NAMED]:
            print(f"  {status}: {record.case}: {record.reason}")
        if len(records) > _NAMED:
            print(f"  ... and {len(records) - _NAMED} more")
    print(f"Picture (look at it): {picture}\nReport: {AtlasFiles(dataset).report_file}")
    if len(report.named(OK)) < 2:
        print("Too few cases can be matched: name a better atlas with --atlas CASE.")
        return 1
    _lay_landmarks(args, dataset, report.atlas_case)
    print(
        "Next:\n"
        "  export nnUNet_extTrainer=$(nnunet_alice trainers)\n"
        f"  nnUNetv2_train {dataset.number} {args.c} all -tr AliceTrainer -p {args.p}"
    )
    return 0


def _lay_landmarks(args: argparse.Namespace, dataset, atlas_case: str) -> None:
    """Lay landmarks, draw them and say how many cases show them."""
    from nnunet_alice.anatomy.atlas_landmarks import landmarks_file, landmarks_picture, prepare_landmarks
    from nnunet_alice.anatomy.cases import load_geometry
    from nnunet_alice.errors import InputError
    from nnunet_alice.pictures.landmarks import draw_landmarks

    asked = (args.landmark_patch_mm, args.landmark_step_mm, args.roi)
    try:
        report = prepare_landmarks(dataset, *asked, args.overwrite)
    except InputError as error:
        if asked != (None, None, None):
            raise
        print(f"No landmarks were laid, and only DrasCLR needs them: {error}")
        return
    landmarks, seen = report.landmarks, report.seen
    title = f"{dataset.name}: {len(landmarks)} landmarks on {atlas_case}, region {report.region}"
    picture = landmarks_picture(dataset)
    atlas = load_geometry(dataset, atlas_case)
    draw_landmarks(atlas, landmarks.points_mm, seen, report.cases, landmarks.patch_mm, picture, title)
    print(
        f"{len(landmarks)} landmarks {'kept' if report.kept else 'laid'} (region {report.region}, patches of "
        f"{landmarks.patch_mm:g} mm, {landmarks.step_mm:g} mm apart): of {report.cases} cases, "
        f"{int(seen.min())} to {int(seen.max())} show a landmark, {seen.mean():.1f} on average; "
        f"{int((seen < 2).sum())} landmarks are shown by fewer than two cases and are not used.\n"
        f"Picture (look at it): {picture}\nLandmarks: {landmarks_file(dataset)}"
    )


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not a positive number of processes")
    return value
