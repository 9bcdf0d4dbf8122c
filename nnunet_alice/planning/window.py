"""A named window as the CT normalisation of plans, instead of what the fingerprint's percentiles say.

nnU-Net clips CT to the 0.5th and 99.5th percentile of the foreground. Without labels that is the body. Lungs are a
small share of it, and the lower limit cuts off much of what is darker than a healthy lung: emphysema.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from nnunet_alice.errors import InputError
from nnunet_alice.files import read_json, write_json
from nnunet_alice.nnunet_folders import nnunet_folder

#: Key of plans that says which window their CT channels have.
WINDOW = "intensity_window"
_CT = "CTNormalization"


@dataclass(frozen=True)
class Window:
    """Intensities that are kept; those beyond are clipped.

    Attributes:
        name: ``lungs``, or ``own`` for two numbers.
        low, high: in the units of the images, HU for CT.
    """

    name: str
    low: float
    high: float

    @property
    def statistics(self) -> dict[str, float]:
        """What nnU-Net's CT normalisation takes from it: clipped to the window, scaled to [-1, 1]."""
        middle, half = (self.low + self.high) / 2, (self.high - self.low) / 2
        return {"percentile_00_5": self.low, "percentile_99_5": self.high, "mean": middle, "std": half}


#: DrasCLR's window for lungs (Section 4.2).
WINDOWS = {"lungs": Window("lungs", -1024.0, 240.0)}


def parse_window(words: Sequence[str]) -> Window:
    """Return the window of a name, or of two numbers.

    Raises:
        InputError: it is neither, or the second number is not above the first.
    """
    if len(words) == 1 and words[0] in WINDOWS:
        return WINDOWS[words[0]]
    try:
        low, high = map(float, words)
    except ValueError:
        known = ", ".join(WINDOWS)
        raise InputError(f"A window is {known} or two numbers such as -1024 240, not '{' '.join(words)}'.").about(
            value=" ".join(words)
        ) from None
    if not low < high:
        raise InputError(f"The window {low:g} to {high:g} is empty; give the lower end first.").about(
            value=f"{low:g} to {high:g}"
        )
    return Window("own", low, high)


def set_window(dataset: str, plans_name: str, window: Window) -> None:
    """Make nnU-Net clip all CT channels to a window and scale them to [-1, 1], as the reference does.

    The window lies in the plans: whoever moves them to a different dataset, as fine-tuning does, moves it too.

    Args:
        dataset: full name of the dataset.
        plans_name: identifier of its plans, which are written again.
        window: the window.

    Raises:
        InputError: the plans normalise no channel as CT.
    """
    path = nnunet_folder("nnUNet_preprocessed") / dataset / f"{plans_name}.json"
    plans = read_json(path)
    schemes = [
        scheme
        for configuration in plans["configurations"].values()
        for scheme in enumerate(configuration.get("normalization_schemes", ()))
    ]
    channels = {str(channel) for channel, scheme in schemes if scheme == _CT}
    if not channels:
        raise InputError(
            f"{path} normalises no channel as CT, so there is no window to set; import with --channel CT, or plan "
            "without --window."
        ).about(path=path, option="--window")
    for channel in channels:
        plans["foreground_intensity_properties_per_channel"][channel] |= window.statistics
    write_json(path, plans | {WINDOW: asdict(window)})
