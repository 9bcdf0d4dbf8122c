"""All numbers of DrasCLR in one place."""

from dataclasses import dataclass


@dataclass(frozen=True)
class DrasCLRSettings:
    """Settings of the method; defaults are the paper's and its reference code's.

    Attributes:
        conditional: location-conditioned encoder; False is the ablation without location.
        num_experts: E, kernels of each convolution.
        location_gain: initial size of the routing's dependence on the location, see `to_conditional`.
        neighbours: k, landmarks around that the regional loss adds; 0 leaves it out (ablation).
        temperature: of both losses.
        beta: weight of the regional loss.
        dim: width of the embedding.
        cells: the bottleneck is averaged to ``cells`` ** 3 cells; of one cell instance norm leaves next to nothing.
        queue_limit: most keys that are kept, of all landmarks together; no visit to a landmark lasts longer.
        key_momentum: of the key encoder.
    """

    conditional: bool = True
    num_experts: int = 8
    location_gain: float = 1.0
    neighbours: int = 2
    temperature: float = 0.2
    beta: float = 1.0
    dim: int = 128
    cells: int = 2
    queue_limit: int = 4096
    key_momentum: float = 0.999
