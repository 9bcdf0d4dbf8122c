"""Alice on two real gloo ranks under DistributedDataParallel gives what one process gives on the whole batch."""

from dataclasses import replace

import pytest
import torch
from support.gloo_ranks import RANKS, needs_distributed, on_ranks
from support.tiny_networks import tiny_unet
from torch.nn.parallel import DistributedDataParallel

from nnunet_alice.methods.alice.model import Alice, ViewRegions
from nnunet_alice.methods.alice.regions import grid_size
from nnunet_alice.methods.alice.settings import AliceSettings

PAIRS = 4
REGIONS = 4
SETTINGS = AliceSettings(num_regions=REGIONS, hidden_dim=16, bottleneck_dim=8, prototypes=16, attention_heads=2)
FORMS = {
    "all": SETTINGS,
    "centred": replace(SETTINGS, sinkhorn=False),
    "noReconstruction": replace(SETTINGS, reconstruction=False),
    "noCASA": replace(SETTINGS, casa=False),
    "regionsOnly": replace(SETTINGS, contrast=False, alignment=False),
    "noRegions": replace(SETTINGS, regions=False),
}

pytestmark = [needs_distributed, pytest.mark.slow]


def model_of(settings):
    torch.manual_seed(0)
    return Alice(tiny_unet(), settings).double().eval()  # eval: no dropout


def whole_batch():
    generator = torch.Generator().manual_seed(1)
    views = torch.randn(2, PAIRS, 1, 8, 8, 8, generator=generator, dtype=torch.float64)
    mask = torch.rand(2, PAIRS, 8, 8, 8, generator=generator) < 0.75
    # every voxel has a region: a mean over those that have one is then the same on every rank
    return views, mask, torch.randint(1, REGIONS + 1, (2, PAIRS, *grid_size((8, 8, 8))), generator=generator)


def step(model, views, mask, labels, student=None):
    """Gradients and centres of one step; queries and anchors (2, B, ...) become a batch of 2B."""
    regions = ViewRegions(labels.flatten(0, 1), torch.tensor([0, 1, 2])) if model.settings.regions else None
    result = model.compute(views.flatten(0, 1), mask.flatten(0, 1), 0.04, student, regions=regions)
    result.loss.backward()
    gradients = {name: p.grad for name, p in model.student.named_parameters() if p.grad is not None}
    return gradients | {"centre": model.centre_cls.value, "centre tokens": model.centre_alignment.value}


def steps_of(rank):
    own = slice(rank * PAIRS // RANKS, (rank + 1) * PAIRS // RANKS)
    batch = whole_batch()
    results = {}
    for name, settings in FORMS.items():
        model = model_of(settings)
        wrapped = DistributedDataParallel(model.student)
        results[name] = step(model, *(part[:, own] for part in batch), wrapped)
    return results


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    return on_ranks(steps_of, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("form", FORMS)
def test_two_ranks_equal_one_process(ranks, form):
    expected = step(model_of(FORMS[form]), *whole_batch())
    for results in ranks:
        assert results[form].keys() == expected.keys()
        for name, value in results[form].items():
            torch.testing.assert_close(value, expected[name], rtol=1e-6, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")
