"""The anatomical embedding for ``nnUNetv2_train``: ``AnatomicalEmbeddingTrainer``, and all its endings."""

from nnunet_alice.pretraining.anatomical_embedding import EmbeddingMethod, EmbeddingSettings
from nnunet_alice.pretraining.optimisation import Optimisation
from nnunet_alice.pretraining.settings import PretrainingSettings, RunSettings
from nnunet_alice.trainers.pretraining import PretrainingTrainer
from nnunet_alice.training.settings import changed
from nnunet_alice.training.variants import trainer_names


class AnatomicalEmbeddingTrainer(PretrainingTrainer):
    """Coarse and fine descriptors of every voxel, by contrast of two overlapping crops of one volume.

    ``batch_size`` of the plans counts pairs of crops. Needs no atlas: only where the body is. After every epoch
    ``metrics.csv``, ``progress.png`` and, every few epochs, ``similarity.png`` say how it goes. Next:
    ``nnunet_alice anatomy --method embedding``.
    """

    method_class = EmbeddingMethod
    settings = PretrainingSettings(
        EmbeddingSettings(),
        run=RunSettings(epochs=80),  # 20,000 steps
        optimisation=Optimisation(
            learning_rate=0.02,
            final_learning_rate=0.0,
            warmup_steps=500,
            weight_decay_range=(1e-4, 1e-4),
            max_gradient_norm=None,
            sgd_momentum=0.9,
        ),
    )


class AnatomicalEmbeddingTrainer_smoke(AnatomicalEmbeddingTrainer):
    """Two epochs of two iterations, to try an installation."""

    settings = changed(AnatomicalEmbeddingTrainer.settings, {"run.epochs": 2, "run.iterations": 2})


__getattr__ = trainer_names(globals())
