"""Plan and preprocess an unlabelled dataset for pretraining.

With --target, the plans of a labelled dataset move onto the unlabelled one: same network, spacing and
normalisation, so that the pretrained weights fit the target as they are. Without it, a planner (-pl) plans from
the unlabelled data alone. In the plans, batch_size is the number of pairs of views of a step.
"""

import argparse
import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnunet_alice.anatomy.orientation import ORIENTATION
from nnunet_alice.cli.common import SOME_FAILED, positive, say_outcomes
from nnunet_alice.dataset import PreprocessedDataset
from nnunet_alice.errors import InputError, NotPreparedError
from nnunet_alice.nnunet_folders import dataset_name, dataset_number, nnunet_folder, plain_name, plans_identifier
from nnunet_alice.parts import add_part_argument
from nnunet_alice.words import pasteable

if TYPE_CHECKING:
    from nnunet_alice.planning.plans import Planned
    from nnunet_alice.planning.window import Window

EXAMPLE = "nnunet_alice plan -d 900 --target 4 --target_plans nnUNetPlans"
RESUMES = True
PACKAGE = "nnunet_alice.planners"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("-d", required=True, metavar="DATASET", help="number or name of the unlabelled dataset")
    parser.add_argument("--target", metavar="DATASET", help="dataset to fine-tune on later, whose plans are used")
    parser.add_argument(
        "--target_plans", default="nnUNetPlans", metavar="PLANS", help="plans of the target [%(default)s]"
    )
    parser.add_argument(
        "-pl",
        metavar="PLANNER",
        help="without --target: AlicePlanner [default], AlicePlannerResEncM, ...ResEncL, ...ResEncXL, ...Small, "
        "...Coarse",
    )
    parser.add_argument(
        "-gpu_memory_target",
        type=positive(float),
        metavar="GB",
        help="GPU memory of a step, on each GPU [the target's, or the planner's]",
    )
    parser.add_argument(
        "-num_gpus",
        type=positive(int),
        default=1,
        metavar="N",
        help="GPUs that will train together: the same number of pairs of views on each, at least one [%(default)s]",
    )
    parser.add_argument("-c", default="3d_fullres", metavar="CONFIGURATION", help="3D configuration [%(default)s]")
    parser.add_argument(
        "-overwrite_plans_name", metavar="NAME", help="name of the plans [PLANS_from<target>, or the planner's]"
    )
    parser.add_argument(
        "--keep_patch",
        action="store_true",
        help="with --target: keep its patch; without this, a patch larger than two thirds of the median volume shrinks",
    )
    add_part_argument(parser)
    parser.add_argument(
        "--window",
        nargs="+",
        metavar="WINDOW",
        help="without --target: keep these intensities of CT instead of the percentiles of the body: lungs "
        "(-1024 to 240 HU), or two numbers",
    )
    parser.add_argument(
        "--modalities",
        metavar="CSV|folders",
        help="which case is CT, T1, ...: a table with the columns case and modality, or 'folders' where the first "
        "folder below the imported one says it; each is normalised by its own scheme [as named before, or one]",
    )
    parser.add_argument(
        "--probe",
        metavar="DATASET",
        help="a labelled dataset: a few crops of it tell during pretraining what frozen features know (metrics.csv)",
    )
    parser.add_argument("--no_preprocess", action="store_true", help="write the plans and stop")
    parser.add_argument(
        "--compact",
        action="store_true",
        help="store preprocessed images with 11 significant bits in small blocks, for pools on a network disk: a view "
        "then takes about half the reading",
    )
    parser.add_argument("-np", type=positive(int), metavar="N", help="processes [as nnU-Net, at most one a processor]")


def run(args: argparse.Namespace) -> int:
    """Plan, preprocess what is missing, and print the next commands."""
    from nnunet_alice.planning.fingerprint import ensure_fingerprint
    from nnunet_alice.planning.modalities import modalities_of, sizes
    from nnunet_alice.planning.plans import default_processes
    from nnunet_alice.planning.window import parse_window, set_window

    if args.part is not None and args.no_preprocess:
        raise InputError(
            "--part shares the preprocessing that --no_preprocess leaves out; give only one of them."
        ).about(option="--part")
    if args.target is not None and args.pl is not None:
        raise InputError("--target brings its own plans and -pl makes new ones; give only one of them.").about(
            option="--target"
        )
    if args.target is not None and args.window is not None:
        raise InputError("--target brings its own intensities; plan without --target to choose a --window.").about(
            option="--window"
        )
    window = None if args.window is None else parse_window(args.window)
    name = dataset_name(args.d)
    processes = args.np or default_processes()
    _check_names(args)
    if args.part is not None:
        return _preprocess(args, name, _plans_that_are_there(args, name), processes)
    _check_before_work(args, name)
    if modalities := modalities_of(name):
        print(f"Modalities: {sizes(modalities)}; CT is clipped to the window of the CT cases, MR z-scored in the body.")
    status = SOME_FAILED if ensure_fingerprint(name, processes) else 0  # named as they failed
    planned = _plan(args, name)
    plain = _apart(args, name, planned.plans_name, window) if modalities else {}
    if window is not None:
        if not modalities:
            set_window(name, planned.plans_name, window)
        print(f"CT is clipped to {window.low:g} to {window.high:g} and scaled to -1 to 1, also in moved plans.")
    print(
        f"Plans {planned.plans_name}, {args.c}: patch {'x'.join(map(str, planned.patch_size))} voxels of "
        f"{' x '.join(f'{s:.3g}' for s in planned.spacing)} mm (z, y, x), {planned.pairs} pairs of views a step, "
        f"about {planned.gigabytes:.1f} GB of GPU memory{f' on each of {args.num_gpus}' if args.num_gpus > 1 else ''}."
    )
    if planned.target_patch is not None:
        print(
            f"The target's patch of {'x'.join(map(str, planned.target_patch))} would show nearly the whole volume, and "
            "all views would look alike; views are smaller (the weights fit all the same; --keep_patch keeps it)."
        )
    if args.probe is not None:
        _keep_probe(args, name, planned.plans_name)
    if not args.no_preprocess:
        status = _preprocess(args, name, planned.plans_name, processes)
    _print_next(args, name, planned.plans_name, plain)
    return status


def _planners() -> dict[str, Any]:
    from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner

    from nnunet_alice.discovery import classes_in

    return classes_in(PACKAGE, ExperimentPlanner)


def _plans_that_are_there(args: argparse.Namespace, name: str) -> str:
    """Return the identifier of the plans that a part takes: parts that planned would change them under each other.

    Raises:
        NotPreparedError: there are none.
        InputError: they have no such configuration.
    """
    from nnunet_alice.planning.moved_plans import moved_name
    from nnunet_alice.planning.plans import check_configuration

    if args.target is not None:
        usual = moved_name(dataset_name(args.target), args.target_plans)
    else:
        usual = _planners()[args.pl or "AlicePlanner"].standard_plans_name
    plans = PreprocessedDataset(name, args.overwrite_plans_name or usual, args.c)
    if not (plans.base / f"{plans.plans_name}.json").is_file():
        raise NotPreparedError(
            f"{name} has no plans {plans.plans_name} yet: run the same with --no_preprocess in place of --part, once."
        ).about(option="--part", value=plans.plans_name)
    check_configuration(plans.plans, args.c, f"{name}/{plans.plans_name}.json")
    return plans.plans_name


def _preprocess(args: argparse.Namespace, name: str, plans_name: str, processes: int) -> int:
    """Preprocess what is missing, print how it went, and return the exit status."""
    from nnunet_alice.planning.preprocessing import preprocess_cases

    outcome = preprocess_cases(name, plans_name, args.c, processes, args.part, args.compact)
    report = PreprocessedDataset(name, plans_name, args.c).preprocessing_report
    return say_outcomes(name, outcome, "preprocessed", report, args.part)


def _check_names(args: argparse.Namespace) -> None:
    """Refuse wrong names of plans, configuration and planner."""
    if args.overwrite_plans_name is not None:
        plans_identifier(args.overwrite_plans_name, "-overwrite_plans_name")
    plain_name(args.target_plans, "--target_plans")
    if not args.c.startswith("3d") or "cascade" in args.c:
        raise InputError(
            f"-c {args.c} cannot be pretrained: take 3d_fullres, or 3d_lowres where nnU-Net plans one."
        ).about(option="-c", value=args.c)
    if args.pl is not None and args.pl not in _planners():
        raise InputError(f"There is no planner '{args.pl}'; -pl takes: {', '.join(_planners())}.").about(
            option="-pl", value=args.pl
        )


def _check_before_work(args: argparse.Namespace, name: str) -> None:
    """Take over the modalities, and refuse a wrong target, before the fingerprint takes its hours."""
    if args.modalities is not None:
        from nnunet_alice.planning.modalities import set_modalities

        set_modalities(name, args.modalities)
    if args.target is not None:
        from nnunet_alice.planning.plans import plans_of_target

        plans_of_target(name, dataset_name(args.target), args.target_plans, args.c)


def _plan(args: argparse.Namespace, name: str) -> "Planned":
    from nnunet_alice.planning.plans import move_target_plans, plan_from_data

    planners = _planners()
    if args.target is None:
        planner = planners[args.pl or "AlicePlanner"]
        return plan_from_data(name, planner, args.c, args.gpu_memory_target, args.overwrite_plans_name, args.num_gpus)
    return move_target_plans(
        name,
        dataset_name(args.target),
        args.target_plans,
        args.c,
        planners.values(),
        args.gpu_memory_target,
        args.overwrite_plans_name,
        args.keep_patch,
        args.num_gpus,
    )


def _keep_probe(args: argparse.Namespace, name: str, plans_name: str) -> None:
    """Keep crops of a labelled dataset for the online probe, and say of which cases."""
    from nnunet_alice.planning.probe import prepare_probe

    probe = prepare_probe(PreprocessedDataset(name, plans_name, args.c), dataset_name(args.probe))
    print(
        f"Online probe: a linear layer on {', '.join(probe.fitted)} of {probe.dataset}, Dice on "
        f"{', '.join(probe.tested)}; do not report these as test cases."
    )


def _apart(args: argparse.Namespace, name: str, plans_name: str, window: "Window | None") -> dict[str, str]:
    """Normalise each modality by its own scheme; modality -> identifier of its plain plans."""
    from nnunet_alice.planning.modalities import add_modalities, keep_of_target

    keep = None
    if args.target is not None:
        keep = keep_of_target(dataset_name(args.target), args.target_plans, args.c)
    return add_modalities(name, plans_name, window, keep)


def _results_folder() -> Path:
    with contextlib.suppress(InputError):
        return nnunet_folder("nnUNet_results")
    return Path("$nnUNet_results")


def _print_next(args: argparse.Namespace, name: str, plans: str, plain: dict[str, str]) -> None:
    """Print the commands that follow; ``plain`` has the plans of each modality, if there are several."""
    number = dataset_number(name)
    checkpoint = _results_folder() / name / f"AliceTrainer__{plans}__{args.c}" / "fold_all" / "checkpoint_final.pth"
    known = not str(checkpoint).startswith("$")  # the shell is to put in the folder
    weights = pasteable("-pretrained_weights", checkpoint) if known else f"-pretrained_weights {checkpoint}"
    print("\nNext:")
    if args.no_preprocess:
        print("  # the same command without --no_preprocess preprocesses; nnUNetv2_preprocess would stop at a bad case")
    print("  # optional: the trainer prepares the anatomy itself where this was not run")
    print(f"  nnunet_alice anatomy -d {number} -p {plans} -c {args.c}")
    print("  export nnUNet_extTrainer=$(nnunet_alice trainers)")
    print(f"  {PreprocessedDataset(name, plans, args.c).pretraining_command('AliceTrainer')}")
    if args.target is None:
        lies = PreprocessedDataset(name, plans, args.c).plans.get(ORIENTATION)
        print("  # then, for a labelled dataset T that nnU-Net has planned already: it takes over these plans")
        if lies:
            print(f"  # (these images lie {lies} when nnU-Net reads them, and so have those of T)")
        for modality, source in (plain or {"": plans}).items():
            if modality:
                print(f"  # where T is {modality}")
            moved = f"{source}_from{number:03d}"
            print(f"  nnUNetv2_move_plans_between_datasets -s {number} -t T -sp {source} -tp {moved}")
            print(f"  nnUNetv2_preprocess -d T -plans_name {moved} -c {args.c}")
            print(f"  nnUNetv2_train T {args.c} 0 -p {moved} {weights}")
    else:
        print("  # then fine-tune with the target's own plans")
        target = dataset_number(dataset_name(args.target))
        print(f"  nnUNetv2_train {target} {args.c} 0 -p {args.target_plans} {weights}")
