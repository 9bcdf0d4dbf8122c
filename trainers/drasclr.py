"""DrasCLR for ``nnUNetv2_train``: ``DrasCLRTrainer``, its ablations, and all of them with endings."""

from nnunet_alice.pretraining.drasclr import DrasCLRMethod, DrasCLRPretrainingSettings
from nnunet_alice.pretraining.optimisation import Optimisation
from nnunet_alice.pretraining.settings import PretrainingSettings
from nnunet_alice.trainers.pretraining import PretrainingTrainer
from nnunet_alice.training.settings import changed
from nnunet_alice.training.variants import trainer_names


class DrasCLRTrainer(PretrainingTrainer):
    """DrasCLR: contrast of subjects at one landmark and around it, in an encoder that knows the location.

    A batch shows one landmark of the atlas in as many subjects as fit where the plans' batch fits. After every epoch
    ``metrics.csv``, ``progress.png`` and, every few epochs, ``views.png`` say how it goes. The checkpoint's network is
    the plain one; the conditional encoder and the queue of keys lie beside it. Endings: ``_<N>experts``,
    ``_<K>neighbours``, ``_temperature<X>``, ``_queue<N>``.
    """

    method_class = DrasCLRMethod
    settings = PretrainingSettings(
        DrasCLRPretrainingSettings(),
        optimisation=Optimisation(
            learning_rate=0.01,
            final_learning_rate=0.0,
            warmup_share=0.0,
            weight_decay_range=(1e-4, 1e-4),
            max_gradient_norm=None,
            sgd_momentum=0.9,
        ),
    )


class DrasCLRTrainer_noLocation(DrasCLRTrainer):
    """Ablation: a plain encoder that is not told the location."""

    settings = changed(DrasCLRTrainer.settings, {"method.conditional": False})


class DrasCLRTrainer_noRegional(DrasCLRTrainer):
    """Ablation: local contrast only, no neighbours."""

    settings = changed(DrasCLRTrainer.settings, {"method.neighbours": 0})


class DrasCLRTrainer_smoke(DrasCLRTrainer):
    """Two epochs of two iterations, to try an installation."""

    settings = changed(
        DrasCLRTrainer.settings, {"run.epochs": 2, "run.iterations": 2, "method.validation_iterations": 2}
    )


__getattr__ = trainer_names(globals())
