"""Where a head may start: as the linear model of the training cases' features, before the encoder moves."""

from collections.abc import Sequence
from contextlib import suppress

import numpy as np
import torch
from sklearn.model_selection import GroupKFold
from torch import Tensor, nn
from torch.nn import functional

from nnunet_alice.anatomy.geometry import UNREADABLE, load_geometry
from nnunet_alice.dataset import PreprocessedDataset
from nnunet_alice.errors import InputError
from nnunet_alice.targets.network import PooledEncoder
from nnunet_alice.targets.windows import CasePredictor

#: tried, strongest first; of the mean loss of standardised features
PENALTIES = np.logspace(2, -3, 11)
#: a feature whose standard deviation over the cases is smaller says nothing
_CONSTANT = 1e-6
_FOLDS, _STEPS = 5, 50


@torch.no_grad()
def case_features(predictor: CasePredictor, dataset: PreprocessedDataset, cases: Sequence[str]) -> dict[str, Tensor]:
    """Return features (1, F) of cases, on the CPU; those that cannot be read are left out."""
    found = {}
    for case in cases:
        with suppress(*UNREADABLE):
            found[case] = predictor.case_features(dataset.image(case), load_geometry(dataset, case)).mean.cpu()
    return found


def start_head(
    network: PooledEncoder, features: Tensor, truth: Tensor, loss: nn.Module, groups: Sequence[str], apart: bool
) -> list[float]:
    """Let the head begin as a linear model, in place.

    Its LayerNorm is given the gain and bias that make the cases' features standard. Its linear layer minimises the loss
    and a penalty on the weights, which patients that were left out choose.

    Args:
        network: whose head it is; dropout is not asked.
        features: (N, F) of the training cases.
        truth: (N, columns) as the loss takes it.
        loss: of outputs (N, outputs) and truth, in evaluation mode.
        groups: (N,) patient of every case.
        apart: the loss is a sum over the outputs, and each is given a penalty of its own.

    Returns:
        The penalty of every output.

    Raises:
        InputError: fewer than two patients.
    """
    if len(set(groups)) < 2:
        raise InputError("A head cannot start as a linear model of one patient; leave out the ending _probeFirst.")
    norm, linear = network.head[0], network.head[-1]
    assert isinstance(norm, nn.LayerNorm) and isinstance(linear, nn.Linear)
    plain = functional.layer_norm(features.double(), [features.shape[1]], eps=norm.eps)
    deviation, mean = torch.std_mean(plain, dim=0, correction=0)
    gain = torch.where(deviation > _CONSTANT, 1 / deviation, 0.0)
    standard = (plain - mean) * gain
    count, outputs = len(PENALTIES), linear.out_features
    losses, held_out = np.zeros(count), torch.zeros(count, len(features), outputs, dtype=torch.float64)
    for train, test in GroupKFold(min(_FOLDS, len(set(groups)))).split(standard, groups=groups):
        for number, layer in enumerate(_fits(standard[train], truth[train], loss, outputs)):
            held_out[number, test] = _outputs(standard[test], layer)
            losses[number] += len(test) * loss(held_out[number, test], truth[test]).item()
    chosen = np.full(outputs, losses.argmin())
    for output in range(outputs if apart else 0):
        mixed = held_out[chosen[0]].repeat(count, 1, 1)
        mixed[..., output] = held_out[..., output]
        chosen[output] = np.argmin([loss(said, truth).item() for said in mixed])
    fits = _fits(standard, truth, loss, outputs)
    weight, bias = (torch.stack([fits[n][part][o] for o, n in enumerate(chosen)]) for part in (0, 1))
    with torch.no_grad():
        for parameter, value in ((norm.weight, gain), (norm.bias, -mean * gain), (linear.weight, weight)):
            parameter.copy_(value)
        linear.bias.copy_(bias)
    return PENALTIES[chosen].tolist()


def _fits(features: Tensor, truth: Tensor, loss: nn.Module, outputs: int) -> list[tuple[Tensor, Tensor]]:
    """Return weights (outputs, F) and bias (outputs,) for every penalty; each fit begins where the last one ended."""
    weight = torch.zeros(outputs, features.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(outputs, dtype=torch.float64, requires_grad=True)
    fits = []
    for penalty in PENALTIES:
        solver = torch.optim.LBFGS([weight, bias], max_iter=_STEPS, line_search_fn="strong_wolfe")

        def closure(solver: torch.optim.LBFGS = solver, penalty: float = penalty) -> Tensor:
            solver.zero_grad()
            objective = loss(_outputs(features, (weight, bias)), truth) + penalty * weight.square().sum()
            objective.backward()
            return objective

        solver.step(closure)
        fits.append((weight.detach().clone(), bias.detach().clone()))
    return fits


def _outputs(features: Tensor, layer: tuple[Tensor, Tensor]) -> Tensor:
    return functional.linear(features, *layer)
