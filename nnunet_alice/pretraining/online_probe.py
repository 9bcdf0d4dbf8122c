"""What frozen features know while a run goes on: a linear layer on a few labelled crops, and the bottleneck's health.

The probe works on a copy of the network that is given the weights each time. It draws nothing by chance and changes
neither weights nor modes of what is trained, so a run with it is the run without it.
"""

import copy
import time
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from nnunet_alice.dataset import PROBE_FILE, PROBE_IGNORED, PreprocessedDataset, preprocessing_recipe
from nnunet_alice.files import read_json
from nnunet_alice.methods.diagnostics import dead_channels, effective_rank
from nnunet_alice.methods.intermediate_features import IntermediateFeatures
from nnunet_alice.methods.linear_probe import LinearDiscriminant, mean_dice


class OnlineProbe:
    """Measures weights on the crops that ``nnunet_alice plan --probe`` kept.

    Args:
        network: one of nnU-Net's U-Nets, copied.
        dataset: the pool.
        device: to measure on.
        decoder: whether the decoder is trained; without, only the bottleneck is looked at.
    """

    def __init__(self, network: nn.Module, dataset: PreprocessedDataset, device: torch.device, decoder: bool) -> None:
        record = read_json(dataset.probe_folder / PROBE_FILE)
        self.fitted, self.tested = ([_read(dataset, case) for case in record[side]] for side in ("fitted", "tested"))
        labels = torch.cat([label.flatten() for _, label in (*self.fitted, *self.tested)])
        self.classes = 1 + int(labels[labels != PROBE_IGNORED].max())
        self.network = IntermediateFeatures(copy.deepcopy(network).requires_grad_(False).to(device).eval())
        self.device = device
        self.decoder = decoder

    @torch.no_grad()
    def measure(self, weights: Mapping[str, Tensor]) -> dict[str, float]:
        """Return metrics of weights of the network.

        Returns:
            ``probe_dice``, mean over the classes of the tested crops (only with a trained decoder); of the bottleneck's
            channels over all crops ``bottleneck_rank`` and the share ``bottleneck_dead``; ``seconds_probe``.
        """
        started = time.perf_counter()
        self.network.network.load_state_dict(weights)
        bottlenecks, metrics, layer = [], {}, None
        predicted, truth = [], []
        for number, (image, label) in enumerate((*self.fitted, *self.tested)):
            features, bottleneck = self._features(image)
            bottlenecks.append(bottleneck)
            if not self.decoder:
                continue
            labels = label.to(self.device).flatten()
            features, labels = features[labels != PROBE_IGNORED], labels[labels != PROBE_IGNORED]
            layer = layer or LinearDiscriminant(self.classes, features.shape[1], self.device)
            if number < len(self.fitted):
                layer.add(features, labels)
            else:
                predicted.append(layer.predict(features))
                truth.append(labels)
        if self.decoder:
            metrics["probe_dice"] = mean_dice(torch.cat(predicted), torch.cat(truth), self.classes)
        channels = torch.cat(bottlenecks)
        metrics |= {"bottleneck_rank": effective_rank(channels), "bottleneck_dead": dead_channels(channels)}
        return metrics | {"seconds_probe": time.perf_counter() - started}

    def _features(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return full-resolution decoder features (voxels, C) and the bottleneck (cells, C_E) of a crop."""
        with torch.autocast(self.device.type, enabled=self.device.type == "cuda"):
            maps = self.network(image[None].to(self.device), None if self.decoder else 0)
        bottleneck = maps.bottleneck[0].float().flatten(1).T
        return (maps.decoder[-1][0].float().flatten(1).T if self.decoder else bottleneck), bottleneck


def open_probe(
    network: nn.Module, dataset: PreprocessedDataset, device: torch.device, decoder: bool, log: Callable[[str], None]
) -> OnlineProbe | None:
    """Return the probe of a pool; None where nobody asked for one, or where it was made by other plans.

    Args:
        network: one of nnU-Net's U-Nets.
        dataset: the pool.
        device: to measure on.
        decoder: whether the decoder is trained.
        log: takes a line for the log.
    """
    path = dataset.probe_folder / PROBE_FILE
    if not path.is_file():
        return None
    record = read_json(path)
    recipe = preprocessing_recipe(dataset.plans, dataset.configuration_manager.configuration)
    if record["recipe"] != recipe or _read(dataset, record["tested"][0])[1].shape != dataset.patch_size:
        log(f"WARNING: {path.parent} was made by other plans: no online probe; run nnunet_alice plan --probe again.")
        return None
    log(f"Online probe on {len(record['fitted'])} + {len(record['tested'])} crops of {record['dataset']}.")
    return OnlineProbe(network, dataset, device, decoder)


def _read(dataset: PreprocessedDataset, case: str) -> tuple[Tensor, Tensor]:
    """Return the image (C, *patch) and labels (*patch) of a crop."""
    with np.load(dataset.probe_folder / f"{case}.npz") as file:
        return torch.from_numpy(file["image"]), torch.from_numpy(file["label"].astype(np.int64))
