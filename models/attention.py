"""Multi-head attention and the feed-forward block, shared by wav2vec2 and whisper.

Shape letters: B batch, T queries, S keys, D d_model, H heads, K head width.
"""

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.dropout import Dropout

KeysValues = tuple[Tensor, Tensor]


class Frames(Protocol):
    """Which frames of a batch there are; ``models.packing`` has the ways of laying them out."""

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, dropout: float) -> Tensor:
        """Attend from the frames (..., H, K) of each utterance to those of the same utterance."""
        ...


class MultiHeadAttention(nn.Module):
    """Scaled dot-product attention with separate query, key, value and output projections.

    Stateless: past or cross-attended keys and values are handed to ``forward``, so a cache is
    an object that the caller owns. The leaf names are the same in both models, so one prune
    scope describes both.

    Args:
        d_model: Width of input and output.
        num_heads: Heads; must divide ``d_model``.
        key_bias: Whether ``k_proj`` has a bias (whisper's has none).
        dropout: Dropout on the attention weights while training.

    Raises:
        ValueError: If ``num_heads`` does not divide ``d_model``.

    Source:
        Vaswani et al. 2017 (arXiv:1706.03762), section 3.2.
    """

    def __init__(
        self, d_model: int, num_heads: int, key_bias: bool = True, dropout: float = 0.0
    ) -> None:
        super().__init__()
        if d_model % num_heads:
            raise ValueError(f"d_model {d_model} is not a multiple of num_heads {num_heads}")
        self.num_heads = num_heads
        self.dropout = dropout
        self.q_proj = nn.Linear(d_model, d_model)
        self.k_proj = nn.Linear(d_model, d_model, bias=key_bias)
        self.v_proj = nn.Linear(d_model, d_model)
        self.out_proj = nn.Linear(d_model, d_model)

    def keys_values(self, source: Tensor) -> KeysValues:
        """Project ``source`` (B, S, D) to keys and values, each (B, H, S, K)."""
        return self._split_heads(self.k_proj(source)), self._split_heads(self.v_proj(source))

    def forward(
        self,
        x: Tensor,
        keys_values: KeysValues | None = None,
        attention_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Tensor:
        """Attend from ``x`` to ``keys_values``.

        Args:
            x: Queries (B, T, D), floating.
            keys_values: Keys and values (B, H, S, K); None attends to ``x`` itself.
            attention_mask: Bool, broadcastable to (B, H, T, S); True = attended. A row without
                a single True has no defined output.
            is_causal: Hide keys after the query's own position (needs T == S and no mask).

        Returns:
            (B, T, D).
        """
        keys, values = self.keys_values(x) if keys_values is None else keys_values
        queries = self._split_heads(self.q_proj(x))
        dropout = self.dropout if self.training else 0.0
        attended = attend(queries, keys, values, attention_mask, dropout, is_causal)
        return self.out_proj(attended.transpose(1, 2).flatten(2))  # (B, H, T, K) -> (B, T, D)

    def to_unprojected(self, x: Tensor, source: Tensor) -> Tensor:
        """Attend from ``x`` (B, T, D) to ``source`` (B, S, D) without making keys and values of it.

        The same as ``forward(x, keys_values(source))``: what projects the keys is applied to the
        queries, where a bias would change every score alike, and what projects the values to the
        average of ``source``. Less work while T is below D / (H - 1). No dropout.

        Returns:
            (B, T, D).
        """
        batch = len(x)
        heads = self.num_heads
        width = x.shape[2] // self.num_heads
        key_weight = self.k_proj.weight.unflatten(0, (heads, width))  # (H, K, D)
        value_weight = self.v_proj.weight.unflatten(0, (heads, width))
        queries = self.q_proj(x).unflatten(2, (heads, width)).permute(2, 0, 1, 3)  # (H, B, T, K)
        queries = (queries.flatten(1, 2) @ key_weight).unflatten(1, (batch, -1))  # (H, B, T, D)
        averages = F.scaled_dot_product_attention(
            queries.transpose(0, 1).flatten(1, 2)[:, None],  # all heads ask one: (B, 1, H * T, D)
            source[:, None],
            source[:, None],
            scale=width**-0.5,
        )
        averages = averages[:, 0].unflatten(1, (heads, -1)).transpose(0, 1).flatten(1, 2)
        attended = (averages @ value_weight.mT).unflatten(1, (batch, -1))  # (H, B, T, K)
        return self.out_proj(attended.permute(1, 2, 0, 3).flatten(2) + self.v_proj.bias)

    def within(self, x: Tensor, frames: Frames) -> Tensor:
        """Let the frames (..., D) of each utterance attend to one another."""
        projected = (layer(x) for layer in (self.q_proj, self.k_proj, self.v_proj))
        q, k, v = (y.unflatten(-1, (self.num_heads, -1)) for y in projected)  # (..., H, K)
        attended = frames.attend(q, k, v, self.dropout if self.training else 0.0)
        return self.out_proj(attended.flatten(-2))

    def _split_heads(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (self.num_heads, -1)).transpose(1, 2)  # (B, S, D) -> (B, H, S, K)


def attend(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    mask: Tensor | None,
    dropout: float,
    is_causal: bool = False,
) -> Tensor:
    """Return scaled dot-product attention (B, H, T, K); masks as ``MultiHeadAttention`` has them.

    Args:
        queries: (B, H, T, K).
        keys: (B, H, S, K).
        values: (B, H, S, K).
        mask: Bool, broadcastable to (B, H, T, S), True = attended; None attends to all.
        dropout: Probability that a weight is dropped.
        is_causal: Hide keys after the query's own position.
    """
    # torch's kernel for the CPU is three times slower in bfloat16 than its matrix products are.
    is_slow = queries.device.type == "cpu" and queries.dtype == torch.bfloat16
    if not (is_slow and torch.is_grad_enabled() and mask is None and dropout == 0):
        return F.scaled_dot_product_attention(
            queries, keys, values, attn_mask=mask, dropout_p=dropout, is_causal=is_causal
        )
    scores = (queries * queries.shape[3] ** -0.5) @ keys.mT  # (B, H, T, S)
    if is_causal:
        later = torch.ones(scores.shape[2:], dtype=torch.bool).triu(1)
        scores = scores.masked_fill(later, -torch.inf)
    return scores.softmax(3).to(values.dtype) @ values


class FeedForward(nn.Module):
    """Two linear layers with an exact GELU between them.

    Args:
        d_model: Width of input and output.
        ffn_dim: Width between the layers.
        activation_dropout: Dropout after the GELU while training.
        dropout: Dropout after the second layer while training.

    Source:
        Vaswani et al. 2017 (arXiv:1706.03762), section 3.3, with GELU in place of ReLU as both
        wav2vec 2.0 and Whisper have it.
    """

    def __init__(
        self, d_model: int, ffn_dim: int, activation_dropout: float = 0.0, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.fc1 = nn.Linear(d_model, ffn_dim)
        self.fc2 = nn.Linear(ffn_dim, d_model)
        self.activation_dropout = Dropout(activation_dropout, inplace=True)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, T, D) to (B, T, D)."""
        return self.dropout(self.fc2(self.activation_dropout(F.gelu(self.fc1(x)))))
