"""Projection heads that the methods share."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_alice.methods.precision import at_least_float32

# Bounds the gradient of the normalisation at a zero vector; far below any norm that a living head produces.
NORM_EPS = 1e-6
INIT_STD = 0.02


class UnitRowLinear(nn.Module):
    """Linear layer without bias whose weight rows are divided by their norm: weight normalisation with the gain at 1.

    With a unit input, the outputs are cosines. The norm is taken in ``forward`` instead of by a parametrisation. So
    the state dict holds one plain tensor and the module can be deep-copied. Always computed in float32: a cosine
    rounded to bfloat16 is off by up to 0.004, which a teacher temperature of 0.01 turns into 0.4 in the exponent.
    """

    def __init__(self, in_dim: int, out_dim: int):
        """Create the layer.

        Args:
            in_dim: Width of the input.
            out_dim: Number of rows, i.e. prototypes.
        """
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_dim, in_dim))
        nn.init.trunc_normal_(self.weight, std=INIT_STD)

    def forward(self, z: Tensor) -> Tensor:
        """Return products of ``z`` (..., in_dim) with the unit rows: (..., out_dim), at least float32."""
        with torch.autocast(z.device.type, enabled=False):
            weight = at_least_float32(self.weight)
            return F.linear(z.to(weight.dtype), F.normalize(weight, dim=-1, eps=NORM_EPS))


class PrototypeHead(nn.Module):
    """Head of iBOT: one MLP for all kinds of tokens, then prototypes, one set for global and one for local tokens.

    MLP of three linear layers with GELU between, L2 normalisation, and two weight-normalised last layers without bias
    and with gain 1 (`UnitRowLinear`). Linear weights start from a truncated normal of std 0.02, biases from 0. Alice
    and DINO alike leave the last layers without gradient during the first epoch; see `last_layer_parameters`.

    Attributes:
        mlp: The three linear layers.
        last_layer_cls: Prototypes of the global embedding.
        last_layer_tokens: Prototypes of encoder and decoder tokens.
    """

    def __init__(self, in_dim: int, hidden_dim: int = 2048, bottleneck_dim: int = 256, prototypes: int = 512):
        """Create the head.

        Args:
            in_dim: Width of the tokens.
            hidden_dim: Width of the MLP's hidden layers.
            bottleneck_dim: Width of the normalised embedding.
            prototypes: Number of prototypes K of each last layer.

        Raises:
            ValueError: If a width is not positive.
        """
        super().__init__()
        if min(in_dim, hidden_dim, bottleneck_dim, prototypes) < 1:
            raise ValueError(
                "Widths of the head must be positive, got "
                f"in_dim={in_dim}, hidden_dim={hidden_dim}, bottleneck_dim={bottleneck_dim}, prototypes={prototypes}."
            )
        self.mlp = nn.Sequential(
            nn.Linear(in_dim, hidden_dim),
            nn.GELU(),
            nn.Linear(hidden_dim, hidden_dim),
            nn.GELU(),
            nn.Linear(hidden_dim, bottleneck_dim),
        )
        self.last_layer_cls = UnitRowLinear(bottleneck_dim, prototypes)
        self.last_layer_tokens = UnitRowLinear(bottleneck_dim, prototypes)
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=INIT_STD)
                nn.init.zeros_(layer.bias)

    def embed(self, x: Tensor) -> Tensor:
        """Return the embedding of tokens.

        Args:
            x: (..., in_dim) tokens.

        Returns:
            (..., bottleneck_dim) of unit length (zero where the MLP's output is zero), at least float32, also under
            autocast.
        """
        z = self.mlp(x)
        with torch.autocast(x.device.type, enabled=False):
            return F.normalize(at_least_float32(z), dim=-1, eps=NORM_EPS)

    def cls_logits(self, z: Tensor) -> Tensor:
        """Return cosines of global embeddings ``z`` (..., bottleneck_dim) to their prototypes: (..., K)."""
        return self.last_layer_cls(z)

    def token_logits(self, z: Tensor) -> Tensor:
        """Return cosines of local embeddings ``z`` (..., bottleneck_dim) to their prototypes: (..., K)."""
        return self.last_layer_tokens(z)

    def last_layer_parameters(self) -> Iterator[nn.Parameter]:
        """Yield weights of both last layers.

        To freeze them, set their ``grad`` to None between backward and optimiser step: then neither gradient nor weight
        decay moves them. Turning ``requires_grad`` off instead would break DDP, which fixes its parameters when built.
        """
        yield from self.last_layer_cls.parameters()
        yield from self.last_layer_tokens.parameters()
