"""CASA: conditional anatomical semantic alignment (Alice, section 3.3)."""

import torch.nn.functional as F
from torch import Tensor, nn

LAYER_NORM_EPS = 1e-6


class CASA(nn.Module):
    """One cross-attention layer, post-norm: gathers from the key-value tokens what belongs to each query token.

    ``y = LayerNorm(q + Dropout(W_o Attention(W_q q, W_k kv, W_v kv)))``, then
    ``LayerNorm(y + Dropout(W_2 ReLU(W_1 y)))``. Projections have no bias, attention is ``softmax(q k^T /
    sqrt(head_dim))`` with dropout on its weights. Tokens carry no position: permuting the key-value tokens changes
    nothing.
    """

    def __init__(
        self, dim: int = 512, heads: int = 8, head_dim: int = 64, feedforward_dim: int = 2048, dropout: float = 0.1
    ):
        """Create the layer.

        Args:
            dim: Width of the tokens, the number of prototypes in Alice.
            heads: Number of attention heads.
            head_dim: Width of a head; heads * head_dim need not be ``dim``.
            feedforward_dim: Hidden width of the feed-forward part.
            dropout: Probability, on the attention weights, the projection and the feed-forward output.

        Raises:
            ValueError: If a width is not positive or the dropout is outside [0, 1).
        """
        super().__init__()
        if min(dim, heads, head_dim, feedforward_dim) < 1:
            raise ValueError(
                "Widths of CASA must be positive, got "
                f"dim={dim}, heads={heads}, head_dim={head_dim}, feedforward_dim={feedforward_dim}."
            )
        if not 0.0 <= dropout < 1.0:
            raise ValueError(f"dropout must lie in [0, 1), got {dropout}.")
        self.dim = dim
        self.heads = heads
        self.to_query = nn.Linear(dim, heads * head_dim, bias=False)
        self.to_key = nn.Linear(dim, heads * head_dim, bias=False)
        self.to_value = nn.Linear(dim, heads * head_dim, bias=False)
        self.to_out = nn.Linear(heads * head_dim, dim, bias=False)
        self.norm_attention = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.expand = nn.Linear(dim, feedforward_dim)
        self.contract = nn.Linear(feedforward_dim, dim)
        self.norm_feedforward = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.dropout = nn.Dropout(dropout)

    def forward(self, query: Tensor, key_value: Tensor) -> Tensor:
        """Align ``key_value`` tokens to the ``query`` tokens.

        Args:
            query: (B, Tq, dim) tokens that condition: the student's encoder tokens, for both sides of the loss.
            key_value: (B, Tk, dim) tokens to gather from: decoder tokens of student or teacher.

        Returns:
            (B, Tq, dim) aligned tokens, one for each query token.

        Raises:
            ValueError: If a shape does not fit.
        """
        for name, tokens in (("query", query), ("key_value", key_value)):
            if tokens.ndim != 3 or tokens.shape[-1] != self.dim:
                raise ValueError(f"{name} must have shape (B, T, {self.dim}), got {tuple(tokens.shape)}.")
        if query.shape[0] != key_value.shape[0]:
            raise ValueError(
                f"query and key_value must have the same batch size, got {query.shape[0]} and {key_value.shape[0]}."
            )
        attended = F.scaled_dot_product_attention(
            self._split(self.to_query(query)),
            self._split(self.to_key(key_value)),
            self._split(self.to_value(key_value)),
            dropout_p=self.dropout.p if self.training else 0.0,
        )
        attended = self.to_out(attended.transpose(1, 2).flatten(2))
        aligned = self.norm_attention(query + self.dropout(attended))
        return self.norm_feedforward(aligned + self.dropout(self.contract(F.relu(self.expand(aligned)))))

    def _split(self, tokens: Tensor) -> Tensor:
        """Split heads: (B, T, heads * head_dim) -> (B, heads, T, head_dim)."""
        return tokens.unflatten(-1, (self.heads, -1)).transpose(1, 2)
