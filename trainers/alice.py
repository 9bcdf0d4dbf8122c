"""Alice for ``nnUNetv2_train``: ``AliceTrainer``, its ablations, and all of them with endings."""

from nnunet_alice.pretraining.alice import AliceMethod, AlicePretrainingSettings
from nnunet_alice.pretraining.settings import PretrainingSettings
from nnunet_alice.trainers.pretraining import PretrainingTrainer
from nnunet_alice.training.settings import changed
from nnunet_alice.training.variants import trainer_names


class AliceTrainer(PretrainingTrainer):
    """Alice: views of the same anatomy in different people, masked reconstruction, self-distillation, CASA, regions.

    ``batch_size`` of the plans counts pairs of views. After every epoch ``metrics.csv``, ``progress.png`` and, every
    few epochs, ``views.png`` say how it goes; retrieval is measured on the fold's validation cases (with fold
    ``all`` these are the training cases).
    """

    method_class = AliceMethod
    settings = PretrainingSettings(AlicePretrainingSettings())


class AliceTrainer_noCASA(AliceTrainer):
    """Ablation: tokens are compared as they are, without cross-attention (as in iBOT)."""

    settings = changed(AliceTrainer.settings, {"method.casa": False})


class AliceTrainer_noRegions(AliceTrainer):
    """Ablation: the terms of the paper alone, no regions of the atlas."""

    settings = changed(AliceTrainer.settings, {"method.regions": False})


class AliceTrainer_regionsOnly(AliceTrainer):
    """Reconstruction and regions of the atlas, for short runs; views of different people are not compared."""

    settings = changed(AliceTrainer.settings, {"method.contrast": False, "method.alignment": False})


class AliceTrainer_noContrast(AliceTrainer_regionsOnly):
    """Ablation: reconstruction only, masked image modelling on any crop of the body; needs no anatomy."""

    settings = changed(
        AliceTrainer_regionsOnly.settings,
        {"method.regions": False, "method.paired": False, "method.unmasked_anchors": False, "method.mask_ratio": 0.75},
    )


class MIMTrainer(AliceTrainer_noContrast):
    """Masked image modelling, the field's baseline: ``AliceTrainer_noContrast`` by its usual name."""


class AliceTrainer_noReconstruction(AliceTrainer):
    """Ablation: self-distillation only."""

    settings = changed(AliceTrainer_noRegions.settings, {"method.reconstruction": False})


class AliceTrainer_withAir(AliceTrainer):
    """Ablation: air and padding are reconstructed, too, as in the paper."""

    settings = changed(AliceTrainer.settings, {"method.reconstruct_air": True})


class AliceTrainer_maskedOnly(AliceTrainer):
    """Ablation: only masked voxels are reconstructed."""

    settings = changed(AliceTrainer.settings, {"method.reconstruct_visible": False})


class AliceTrainer_sameVolume(AliceTrainer):
    """Ablation: both views come from one volume."""

    settings = changed(AliceTrainer.settings, {"method.same_volume": True})


class AliceTrainer_atlas(AliceTrainer):
    """Views matched by the atlas, though an embedding may be there (``AliceTrainer`` would take that)."""

    settings = changed(AliceTrainer.settings, {"method.matcher": "atlas"})


class AliceTrainer_embedding(AliceTrainer):
    """Views matched by the anatomical embedding, which has to be there (``anatomy --method embedding``)."""

    settings = changed(AliceTrainer.settings, {"method.matcher": "embedding"})


class AliceTrainer_weakContrast(AliceTrainer):
    """Ablation: ``L_cls`` at 0.3 of its weight, between masked images alone and the whole method."""

    settings = changed(AliceTrainer.settings, {"method.cls_weight": 0.3})


class AliceTrainer_paper(AliceTrainer):
    """The paper's terms, masks, pooling, targets, weights and temperatures; collapses on InstanceNorm U-Nets."""

    settings = changed(AliceTrainer.settings, {"method": AliceTrainer.settings.method.paper()})


class AliceTrainer_smoke(AliceTrainer):
    """Two epochs of two iterations, to try an installation."""

    settings = changed(AliceTrainer.settings, {"run.epochs": 2, "run.iterations": 2})


__getattr__ = trainer_names(globals())
