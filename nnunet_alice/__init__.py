"""Self-supervised pretraining for nnU-Net v2: unlabelled volumes in, stock nnU-Net weights out.

The names below are what programs may rely on. Each is imported when it is first used, so that ``import nnunet_alice``
costs nothing. The page docs/reference/api.md describes them.
"""

import pathlib
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # for type checkers and editors, which do not run __getattr__
    from nnunet_alice.anatomy.atlas import prepare_atlas as prepare_atlas
    from nnunet_alice.checkpoints.inspection import describe_checkpoint as describe_checkpoint
    from nnunet_alice.checkpoints.transfer import transfer_checkpoint as transfer_checkpoint
    from nnunet_alice.checkpoints.transfer import transfer_weights as transfer_weights
    from nnunet_alice.dataset import open_dataset as open_dataset
    from nnunet_alice.features.arrays import extract_features as extract_features
    from nnunet_alice.features.encoders import open_encoder as open_encoder
    from nnunet_alice.importing.unlabelled import import_unlabelled as import_unlabelled
    from nnunet_alice.matching.registry import open_matcher as open_matcher
    from nnunet_alice.pretraining.alice import AliceMethod as AliceMethod
    from nnunet_alice.pretraining.alice import AlicePretrainingSettings as AlicePretrainingSettings
    from nnunet_alice.pretraining.anatomical_embedding import EmbeddingMethod as EmbeddingMethod
    from nnunet_alice.pretraining.anatomical_embedding import EmbeddingSettings as EmbeddingSettings
    from nnunet_alice.pretraining.drasclr import DrasCLRMethod as DrasCLRMethod
    from nnunet_alice.pretraining.drasclr import DrasCLRPretrainingSettings as DrasCLRPretrainingSettings
    from nnunet_alice.pretraining.driving import pretrain as pretrain
    from nnunet_alice.pretraining.method import RunContext as RunContext
    from nnunet_alice.pretraining.optimisation import Optimisation as Optimisation

__version__ = "0.1.0"

# python -m takes this package from a checkout that it is started in, where trainers and planners lie beside it
if not (_here := pathlib.Path(__file__).parent).joinpath("trainers").is_dir():
    __path__.append(str(_here.parent))

#: name -> module in which it is
FRONT_DOOR = {
    "open_dataset": "dataset",
    "import_unlabelled": "importing.unlabelled",
    "prepare_atlas": "anatomy.atlas",
    "open_matcher": "matching.registry",
    "open_encoder": "features.encoders",
    "extract_features": "features.arrays",
    "describe_checkpoint": "checkpoints.inspection",
    "transfer_weights": "checkpoints.transfer",
    "transfer_checkpoint": "checkpoints.transfer",
    "pretrain": "pretraining.driving",
    "RunContext": "pretraining.method",
    "Optimisation": "pretraining.optimisation",
    "AliceMethod": "pretraining.alice",
    "AlicePretrainingSettings": "pretraining.alice",
    "DrasCLRMethod": "pretraining.drasclr",
    "DrasCLRPretrainingSettings": "pretraining.drasclr",
    "EmbeddingMethod": "pretraining.anatomical_embedding",
    "EmbeddingSettings": "pretraining.anatomical_embedding",
}


def __getattr__(name: str) -> Any:
    """Import one of the names of the front door."""
    if name not in FRONT_DOOR:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    value = globals()[name] = getattr(import_module(f"{__name__}.{FRONT_DOOR[name]}"), name)
    return value


def __dir__() -> list[str]:
    """List the names of the front door beside the module's own."""
    return sorted({*globals(), *FRONT_DOOR})
