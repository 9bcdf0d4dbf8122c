"""Plans of one dataset for a different one, as nnU-Net moves them, but in memory: they are written once, when ready."""

from nnunet_alice.nnunet_folders import dataset_number, plain_name
from nnunet_alice.planning.preprocessing import raw_cases


def moved_name(dataset: str, plans_name: str) -> str:
    """Return the identifier that plans of a dataset have where they moved to, unless somebody names them."""
    return f"{plans_name}_from{dataset_number(dataset):03d}"


def rename_plans(plans: dict, name: str) -> None:
    """Rename plans, in place, and with them the folders of what is preprocessed by them.

    Raises:
        InputError: such a folder would lie elsewhere.
    """
    if name == plans["plans_name"]:
        return
    for configuration in plans["configurations"].values():
        identifier = configuration.get("data_identifier")
        if identifier is not None:  # the plans may be somebody's
            plain_name(identifier, f"data_identifier in {plans['plans_name']}")
            rest = identifier.removeprefix(plans["plans_name"])
            configuration["data_identifier"] = f"{name}{rest if rest != identifier else f'_{identifier}'}"
    plans["plans_name"] = name


def reader_of(dataset: str, dataset_json: dict) -> str:
    """Return the name of the reader that nnU-Net takes for a raw dataset.

    Args:
        dataset: full name of the dataset; its first case decides where ``dataset.json`` does not.
        dataset_json: of the dataset.
    """
    from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json

    example = next(iter(raw_cases(dataset).values()))["images"][0]
    found = determine_reader_writer_from_dataset_json(
        dataset_json, example, allow_nonmatching_filename=True, verbose=False
    )
    return found.__name__
