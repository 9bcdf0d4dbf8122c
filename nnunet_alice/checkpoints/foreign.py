"""Networks of other projects that nnU-Net's U-Nets cannot take, known by the names of their tensors, and why not."""

import re
from collections.abc import Iterable
from typing import NamedTuple


class ForeignNetwork(NamedTuple):
    """A kind of network.

    Attributes:
        name: of the network, and of the project that trains it.
        mark: regular expression that one of its tensors' names fits from the beginning, and no U-Net's of nnU-Net v2.
        reason: why its weights have no place in a U-Net of nnU-Net, and what to do.
    """

    name: str
    mark: str
    reason: str


_TRANSFORMER = "its encoder is a transformer and not convolutions"
_FOREIGN = (
    ForeignNetwork(
        "an STU-Net",
        r"conv_blocks_context\.\d+\.\d+\.conv[123]\.weight",
        "its blocks shrink the image by strided convolutions with a projection that has no norm, and it has no stem; "
        "fine-tune it with STU-Net's own trainer",
    ),
    ForeignNetwork(
        "a U-Net of nnU-Net v1",
        r"conv_blocks_context\.\d+\.(?:\d+\.)?blocks\.\d+\.",
        "its tensors have other names and its plans a different format; take weights that nnU-Net v2 trained",
    ),
    ForeignNetwork(
        "a SegResNet of MONAI",
        r"(?:convInit\.conv|down_layers\.\d+\.\d+\.(?:conv|norm)\d\S*|encoder\.layers\.\d+\.blocks\.\d+\.\S+)\.",
        "its blocks norm by groups, and before instead of after the convolution; fine-tune it with MONAI",
    ),
    ForeignNetwork(
        "a SwinUNETR of MONAI",
        r"(?:swinViT\.|patch_embed\.proj\.|layers1\.0\.blocks\.)",
        f"{_TRANSFORMER}; fine-tune it with MONAI",
    ),
    ForeignNetwork(
        "a vision transformer such as Primus",
        r"(?:encoder\.)?(?:eva|vit|transformer|blocks|pos_embed|cls_token|down_projection)(?:\.|$)",
        f"{_TRANSFORMER}; fine-tune it with nnU-Net's development branch or its own project",
    ),
)


def foreign_network(names: Iterable[str]) -> ForeignNetwork | None:
    """Return the kind of network whose tensors have these names; None if it is not one of the known kinds."""
    names = list(names)
    for kind in _FOREIGN:
        if any(re.match(kind.mark, name) for name in names):
            return kind
    return None
