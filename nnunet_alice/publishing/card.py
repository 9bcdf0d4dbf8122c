"""The model card: ``README.md`` with the front matter that the Hugging Face hub reads."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import yaml

from nnunet_alice import __version__

_USE = (
    "Starting point for training a segmentation of 3D medical images with nnU-Net; encoder features for research. "
    "The network reconstructs its input and segments nothing before it is fine-tuned."
)
_LIMITS = (
    "Not a medical device, and no diagnosis may rest on it. Untested on other scanners, sequences, age groups and "
    "diseases than those of its training data. Images of other spacing or normalisation have to be prepared by the "
    "plans in this folder."
)
#: paper of a method, and of what all of them stand on
PAPERS = {
    "nnU-Net": "Isensee et al., nnU-Net: a self-configuring method for deep learning-based biomedical image "
    "segmentation, Nature Methods 18, 2021.",
    "Alice": "Jiang et al., Anatomical Invariance Modeling and Semantic Alignment for Self-supervised Learning in 3D "
    "Medical Image Analysis, ICCV 2023.",
    "DrasCLR": "Yu et al., DrasCLR: A self-supervised framework of learning disease-related and anatomy-specific "
    "representation for 3D lung CT images, Medical Image Analysis 92, 2024.",
    "AnatomicalEmbedding": "Yan et al., SAM: Self-supervised Learning of Pixel-wise Anatomical Embeddings in "
    "Radiological Images, IEEE Transactions on Medical Imaging 41, 2022.",
}


@dataclass(frozen=True)
class CardText:
    """What only the publisher can say.

    Attributes:
        name: title of the card.
        licence: identifier of the hub's list, e.g. ``apache-2.0``, or ``other`` (then ``LICENSE`` is in the folder).
        data: one line a source of training data; none: the data are not named.
        use: intended use.
        limits: known limits.
        citation: how to cite the weights.
    """

    name: str
    licence: str
    data: Sequence[str] = ()
    use: str = _USE
    limits: str = _LIMITS
    citation: str | None = None


def card(
    text: CardText,
    described: Mapping[str, Any],
    run: Mapping[str, Any],
    checksum: str,
    left_out: Sequence[str],
    files: Sequence[str],
    evaluation: pd.DataFrame | None = None,
) -> str:
    """Return the card's Markdown.

    Args:
        text: what the publisher says.
        described: from ``describe_checkpoint``.
        run: entry ``pretraining`` of the checkpoint.
        checksum: SHA-256 of the folder's ``SHA256SUMS``.
        left_out: from ``publishing.contents.contents``.
        files: names of the files in the folder.
        evaluation: summary of a benchmark's report.
    """
    cases = run["dataset_json"].get("numTraining", "?")
    lines = ["---", yaml.safe_dump(_front_matter(text, run), sort_keys=False, allow_unicode=True).rstrip(), "---", ""]
    lines += [f"# {text.name}", ""]
    lines += [f"{run['method']}, pretrained without labels on {cases} volumes, for nnU-Net v2.", ""]
    lines += ["## Use", "", *_commands(checksum), "", "## What it is", "", "| | |", "|---|---|"]
    lines += [f"| {name} | {_cell(value)} |" for name, value in described.items() if name != "fine-tune"]
    lines += ["", "## Training data", "", *(f"- {line}" for line in text.data or ["The data are not named."]), ""]
    lines += ["## Intended use", "", text.use, "", "## Limits", "", text.limits, ""]
    lines += _evaluation(evaluation, files)
    lines += ["## Licence and citation", "", f"Licence: {text.licence}. Please cite:", ""]
    papers = [text.citation, *(PAPERS[name] for name in (run["method"], "nnU-Net") if name in PAPERS)]
    lines += [*(f"- {paper.strip()}" for paper in papers if paper), "", "## Files", ""]
    lines += [f"`{'`, `'.join(files)}`; no file is a pickle.", ""]
    lines += ["Left out:", "", *(f"- {line}" for line in left_out), "", f"Written by nnunet_alice {__version__}."]
    return "\n".join(lines) + "\n"


def _front_matter(text: CardText, run: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metadata that the hub searches by."""
    matter: dict[str, Any] = {"license": text.licence}
    if text.licence == "other":
        matter |= {"license_name": "see-license-file", "license_link": "LICENSE"}
    channels = run["dataset_json"].get("channel_names", {}).values()
    tags = ["medical", "3d", "nnunet", "self-supervised", "pretrained", run["method"], *map(str, channels)]
    return matter | {
        "library_name": "nnunet_alice",
        "pipeline_tag": "image-feature-extraction",
        "tags": list(dict.fromkeys(tag.lower().replace(" ", "-") for tag in tags)),
    }


def _commands(checksum: str) -> list[str]:
    """Return how to take the weights, from wherever they lie."""
    return [
        "Fetch this folder and give its plans to your labelled dataset (here number 4), then fine-tune:",
        "",
        "```bash",
        "nnunet_alice fetch hf:OWNER/NAME -d 4     # from the Hugging Face hub",
        f"nnunet_alice fetch https://HOST/FOLDER --sha256 {checksum} -d 4",
        "nnunet_alice fetch FOLDER -d 4            # a copy on this machine",
        "```",
        "",
        "The command prints those that follow. For plans of your own, give the folder to `nnunet_alice transfer -i`.",
    ]


def _cell(value: Any) -> str:
    return "<br>".join(map(str, value)) if isinstance(value, list) else str(value)


def _evaluation(summary: pd.DataFrame | None, files: Sequence[str]) -> list[str]:
    """Return the table of a benchmark's summary: the first metric, mean over classes, all numbers of labels."""
    if summary is None:
        return ["## Evaluation", "", "None was given.", ""]
    rows = summary[summary["class"] == summary["class"].iloc[0]]
    metric = rows["metric"].iloc[0]
    rows = rows[rows["metric"] == metric]
    lines = ["## Evaluation", "", f"{metric}, {rows['class'].iloc[0]}, with 95 % intervals (`evaluation.csv`).", ""]
    lines += ["| labels | % of run | arm | value | against the baseline |", "|---:|---:|---|---|---|"]
    for row in rows.itertuples():
        gain = "" if pd.isna(row.difference) else _interval(row.difference, row.difference_low, row.difference_high)
        lines.append(
            f"| {row.labels} | {row.percent} | {row.arm} | {_interval(row.mean, row.low, row.high)} | {gain} |"
        )
    if "evaluation.png" in files:
        lines += ["", "![Evaluation](evaluation.png)"]
    return [*lines, ""]


def _interval(mean: float, low: float, high: float) -> str:
    return f"{mean:.3g} [{low:.3g}, {high:.3g}]"
