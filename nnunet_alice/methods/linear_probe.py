"""A linear layer on frozen features, in closed form: Gaussian discriminants with one covariance for all classes."""

import torch
from torch import Tensor

#: share of the mean variance that is added to every variance: features may depend on each other
_SHRINKAGE = 1e-3
#: added at least: features may not vary at all
_MIN_VARIANCE = 1e-9


class LinearDiscriminant:
    """Linear discriminant analysis of features that come in parts; nothing is drawn by chance.

    Args:
        classes: number of classes.
        width: C, number of features.
        device: that the sums are kept on.
    """

    def __init__(self, classes: int, width: int, device: torch.device | str = "cpu") -> None:
        self.counts = torch.zeros(classes, dtype=torch.float64, device=device)
        self.sums = torch.zeros(classes, width, dtype=torch.float64, device=device)
        self.squares = torch.zeros(width, width, dtype=torch.float64, device=device)

    def add(self, features: Tensor, labels: Tensor) -> None:
        """Take in samples.

        Args:
            features: (N, C).
            labels: (N,) integers below the number of classes.
        """
        values = features.double()
        self.counts += torch.bincount(labels, minlength=len(self.counts))
        self.sums.index_add_(0, labels, values)
        self.squares += values.T @ values

    def layer(self) -> tuple[Tensor, Tensor]:
        """Return weights (classes, C) and biases (classes,); a class without samples has the bias ``-inf``."""
        total = self.counts.sum()
        middle = self.sums.sum(dim=0) / total
        means = torch.where(self.counts[:, None] > 0, self.sums / self.counts.clamp(min=1)[:, None], middle)
        within = (self.squares - (means.T * self.counts) @ means) / total
        ridge = (_SHRINKAGE * within.diagonal().mean()).clamp(min=_MIN_VARIANCE)
        within = within + ridge * torch.eye(len(within), dtype=within.dtype, device=within.device)
        weights = torch.linalg.solve(within, (means - middle).T).T
        biases = (self.counts / total).log() - (weights * (means + middle)).sum(dim=1) / 2
        return weights, biases

    def predict(self, features: Tensor) -> Tensor:
        """(N,) most probable class of features (N, C)."""
        weights, biases = self.layer()
        return (features.double() @ weights.T + biases).argmax(dim=1)


def mean_dice(predicted: Tensor, truth: Tensor, classes: int) -> float:
    """Return mean Dice of the classes 1, 2, ... that the truth shows; NaN where it shows none.

    Args:
        predicted: (N,) classes.
        truth: (N,) classes.
        classes: number of classes, 0 included.
    """
    pairs = torch.bincount(truth * classes + predicted, minlength=classes**2).reshape(classes, classes).double()
    shown = pairs.sum(dim=1)[1:] > 0
    dice = 2 * pairs.diagonal() / (pairs.sum(dim=0) + pairs.sum(dim=1)).clamp(min=1)
    return float(dice[1:][shown].mean())
