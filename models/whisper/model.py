"""Whisper: an audio encoder and a text decoder.

Shape letters: B batch, F mel frames, M mels, T encoder frames, L tokens, D d_model, V vocab.
"""

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.attention import FeedForward, KeysValues, MultiHeadAttention
from models.dropout import Dropout
from models.family import SpeechModel
from models.whisper.config import WhisperConfig
from models.whisper.kv_cache import (
    Audio,
    KVCache,
    LayerCache,
    ProjectedAudio,
    positions_from,
)

_LEAVES = r"\.layers\.\d+\.((self|cross)_attn\.(q|k|v|out)_proj|ffn\.fc[12])\.(weight|bias)"
PRUNE_SCOPES = {
    "encoder_decoder": r"(encoder|decoder)" + _LEAVES,
    "encoder": r"encoder" + _LEAVES,
    "decoder": r"decoder" + _LEAVES,
}
"""Regular expressions that match the whole native name of each parameter in a prune scope."""

_INIT_STD = 0.02


class EncoderLayer(nn.Module):
    """Pre-norm self attention and feed-forward, each with a residual."""

    def __init__(self, config: WhisperConfig) -> None:
        super().__init__()
        d_model = config.d_model
        self.attn_norm = nn.LayerNorm(d_model)
        self.self_attn = MultiHeadAttention(
            d_model, config.encoder_heads, key_bias=False, dropout=config.attention_dropout
        )
        self.ffn_norm = nn.LayerNorm(d_model)
        self.ffn = FeedForward(
            d_model, config.encoder_ffn_dim, config.activation_dropout, config.dropout
        )
        self.dropout = Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, T, D) to (B, T, D)."""
        x = x + self.dropout(self.self_attn(self.attn_norm(x)))
        return x + self.ffn(self.ffn_norm(x))


class AudioEncoder(nn.Module):
    """Two convolutions, fixed positions, pre-norm layers, final norm."""

    def __init__(self, config: WhisperConfig) -> None:
        super().__init__()
        d_model = config.d_model
        self.conv1 = nn.Conv1d(config.num_mels, d_model, kernel_size=3, padding=1)
        self.conv2 = nn.Conv1d(d_model, d_model, kernel_size=3, stride=2, padding=1)
        self.positions = nn.Parameter(
            _sinusoids(config.audio_positions, d_model), requires_grad=False
        )
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.encoder_layers))
        self.final_norm = nn.LayerNorm(d_model)
        self.dropout = Dropout(config.dropout)

    def embed(self, log_mel: Tensor) -> Tensor:
        """Map log-mel (B, M, F) to the first layer's input (B, T, D), T = ceil(F / 2)."""
        num_mels = self.conv1.in_channels
        num_positions = self.positions.shape[0]
        if log_mel.dim() != 3 or log_mel.shape[1] != num_mels:
            raise ValueError(
                f"log_mel has shape {tuple(log_mel.shape)}, expected (batch, {num_mels}, frames): "
                f"compute it with num_mels={num_mels}"
            )
        if not 0 < log_mel.shape[2] <= 2 * num_positions:
            raise ValueError(
                f"log_mel has {log_mel.shape[2]} frames, the encoder takes 1 to "
                f"{2 * num_positions}: cut the audio to {num_positions / 50:g} seconds"
            )
        x = F.gelu(self.conv1(log_mel))
        # Contiguous, because residual sums keep the strides and norms are slow on others.
        x = F.gelu(self.conv2(x)).transpose(1, 2).contiguous()  # (B, D, T) -> (B, T, D)
        return self.dropout(x + self.positions[: x.shape[1]])

    def forward(self, log_mel: Tensor, states: list[Tensor] | None = None) -> Tensor:
        """Encode log-mel (B, M, F) to (B, T, D); arguments as in ``Whisper.encode``."""
        x = self.embed(log_mel)
        for layer in self.layers:
            x = layer(x)
            if states is not None:
                states.append(x)
        return self.final_norm(x)


class DecoderLayer(nn.Module):
    """Pre-norm causal self attention, cross attention and feed-forward, each with a residual."""

    def __init__(self, config: WhisperConfig) -> None:
        super().__init__()
        d_model = config.d_model
        num_heads = config.decoder_heads
        dropout = config.attention_dropout
        self.attn_norm = nn.LayerNorm(d_model)
        self.self_attn = MultiHeadAttention(d_model, num_heads, key_bias=False, dropout=dropout)
        self.cross_attn_norm = nn.LayerNorm(d_model)
        self.cross_attn = MultiHeadAttention(d_model, num_heads, key_bias=False, dropout=dropout)
        self.ffn_norm = nn.LayerNorm(d_model)
        self.ffn = FeedForward(
            d_model, config.decoder_ffn_dim, config.activation_dropout, config.dropout
        )
        self.dropout = Dropout(config.dropout)

    def forward(self, x: Tensor, audio: Audio, cache: LayerCache | None = None) -> Tensor:
        """Map tokens (B * N, L, D) to (B * N, L, D).

        Args:
            x: Hidden states of the given tokens, N beams per utterance (1 without a cache).
            audio: What to cross-attend to.
            cache: Past tokens of this layer, extended by the given ones.
        """
        x = x + self.dropout(self._attend_to_text(self.attn_norm(x), cache))
        x = x + self.dropout(self._attend_to_audio(self.cross_attn_norm(x), audio))
        return x + self.ffn(self.ffn_norm(x))

    def _attend_to_audio(self, x: Tensor, audio: Audio) -> Tensor:
        # It hides nothing, so the beams of an utterance can be queries of one row.
        queries = x.reshape(audio.num_utterances, -1, x.shape[2])
        return audio.attend(self.cross_attn, queries).reshape(x.shape)

    def _attend_to_text(self, x: Tensor, cache: LayerCache | None) -> Tensor:
        """Attend to the given and the cached tokens, none after the query's own."""
        if cache is None:
            return self.self_attn(x, is_causal=True)
        keys, values, visible = cache.append(*self.self_attn.keys_values(x))
        return self.self_attn(x, (keys, values), visible)


class TextDecoder(nn.Module):
    """Token embedding, learned positions, pre-norm layers, final norm."""

    def __init__(self, config: WhisperConfig) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.positions = nn.Parameter(torch.empty(config.text_positions, config.d_model))
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.decoder_layers))
        self.final_norm = nn.LayerNorm(config.d_model)
        self.dropout = Dropout(config.dropout)

    def embed(self, decoder_ids: Tensor, positions: Tensor) -> Tensor:
        """Map ids (B, L), whose learned positions are (L, D), to the first layer's input."""
        return self.dropout(self.token_embedding(decoder_ids) + positions)

    def forward(
        self,
        decoder_ids: Tensor,
        encoded: Tensor | None = None,
        cache: KVCache | None = None,
        states: list[Tensor] | None = None,
    ) -> Tensor:
        """Map ids (B, L) to final hidden states (B, L, D); arguments as in ``Whisper.decode``."""
        if cache is None:
            if encoded is None:
                raise ValueError("the decoder needs the encoded audio or a cache made from it")
            x = self.embed(decoder_ids, positions_from(self.positions, 0, decoder_ids.shape[1]))
            for layer, cross in zip(self.layers, self.cross_keys_values(encoded), strict=True):
                x = layer(x, ProjectedAudio(*cross))
                if states is not None:
                    states.append(x)
        else:
            x = self.embed(decoder_ids, cache.next_positions(self.positions, decoder_ids.shape[1]))
            for layer, audio, past in zip(self.layers, cache.audio, cache.layers, strict=True):
                x = layer(x, audio, past)
        return self.final_norm(x)

    def cross_keys_values(self, encoded: Tensor) -> list[KeysValues]:
        """Project encoded audio (B, T, D) to each layer's keys and values, each (B, H, T, K)."""
        layers = cast(Iterable[DecoderLayer], self.layers)
        return [layer.cross_attn.keys_values(encoded) for layer in layers]


class Whisper(SpeechModel):
    """Whisper with the output head tied to the token embedding.

    Fresh weights are drawn from N(0, 0.02) on torch's global generator, biases are 0, and the
    encoder's positions are sinusoids that are never trained (``requires_grad`` is False).

    Args:
        config: Sizes and dropout.

    Attributes:
        family: "whisper".
        config: Sizes and dropout, ``vocab_size`` as it is now.

    Source:
        Radford et al. 2022 (arXiv:2212.04356). Compared layer by layer with transformers'
        ``modeling_whisper.py``, which differs in three ways: it takes full-length audio only,
        initialises the embedding of its padding id to zero and, in float16, clamps encoder layers.
    """

    family = "whisper"
    config: WhisperConfig

    def __init__(self, config: WhisperConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = AudioEncoder(config)
        self.decoder = TextDecoder(config)
        self.apply(_init_weights)
        nn.init.normal_(self.decoder.positions, std=_INIT_STD)

    def forward(self, log_mel: Tensor, decoder_ids: Tensor) -> Tensor:
        """Same as `logits`, for wrappers that call the module."""
        return self.logits(log_mel, decoder_ids)

    def logits(
        self,
        log_mel: Tensor,
        decoder_ids: Tensor,
        encoder_states: list[Tensor] | None = None,
        decoder_states: list[Tensor] | None = None,
    ) -> Tensor:
        """Score every next token of a given text.

        Args:
            log_mel: (B, M, F) floating, F up to twice ``audio_positions``.
            decoder_ids: (B, L) int64, start ids first.
            encoder_states: Where given, the output (B, T, D) of every encoder layer is appended,
                before the final norm.
            decoder_states: The same of the decoder, (B, L, D).

        Returns:
            (B, L, V); position i scores what follows ``decoder_ids[:, i]``.

        Raises:
            ValueError: If the audio or the text is too long, or ``log_mel`` is of another shape.
        """
        encoded = self.encode(log_mel, encoder_states)
        return self.decode(decoder_ids, encoded, states=decoder_states)

    def encode(self, log_mel: Tensor, states: list[Tensor] | None = None) -> Tensor:
        """Encode log-mel (B, M, F) to (B, T, D), T = ceil(F / 2).

        A shorter F than 30 s is a truncated context: the first T positions are used, as if the
        model had been built with ``audio_positions=T``.

        Args:
            log_mel: As for ``logits``.
            states: Where given, every layer's output (B, T, D), before the final norm, is appended.

        Raises:
            ValueError: If T exceeds ``audio_positions`` or the shape is another.
        """
        return self.encoder(log_mel, states)

    def new_cache(self, encoded: Tensor, max_tokens: int, num_beams: int = 1) -> KVCache:
        """Make an empty cache for decoding ``encoded`` (B, T, D), its cross keys and values filled.

        Args:
            encoded: Output of ``encode``.
            max_tokens: Tokens that are to fit, start ids included.
            num_beams: Sequences per utterance, adjacent in the batch of ``decode``.
        """
        cross = self.decoder.cross_keys_values(encoded)
        audio = [ProjectedAudio(*each).contiguous() for each in cross]
        return KVCache(audio, max_tokens, num_beams)

    def decode(
        self,
        decoder_ids: Tensor,
        encoded: Tensor | None = None,
        cache: KVCache | None = None,
        states: list[Tensor] | None = None,
    ) -> Tensor:
        """Score the next token after each of the given ids.

        Args:
            decoder_ids: (B, L) int64; with a cache, only the ids it does not hold yet.
            encoded: (B, T, D) from ``encode``; not read when there is a cache, which holds what
                is needed of it.
            cache: From ``new_cache``; extended by the given ids in place.
            states: Where given, and there is no cache, every layer's output (B, L, D), before the
                final norm, is appended.

        Returns:
            (B, L, V), for the given ids only.

        Raises:
            ValueError: If the text is too long for the positions or the cache.
        """
        return self.head(self.decoder(decoder_ids, encoded, cache, states))

    def head(self, hidden: Tensor) -> Tensor:
        """Map the decoder's final hidden states (..., D) to logits (..., V)."""
        return F.linear(hidden, self.decoder.token_embedding.weight)

    def reset_vocabulary(self, embedding: Tensor) -> None:
        """Replace the token embedding, and so the tied head, by a copy of ``embedding`` (V, D).

        ``config.vocab_size`` follows. An optimizer made before still holds the old parameter.

        Raises:
            ValueError: If the width is not ``d_model``.
        """
        if embedding.dim() != 2 or embedding.shape[1] != self.config.d_model:
            raise ValueError(
                f"embedding has shape {tuple(embedding.shape)}, expected "
                f"(vocabulary, {self.config.d_model}): use one row of d_model values per token"
            )
        weight = embedding.detach().to(self.decoder.token_embedding.weight).clone()
        self.decoder.token_embedding = nn.Embedding.from_pretrained(weight, freeze=False)
        self.config = replace(self.config, vocab_size=embedding.shape[0])


def _sinusoids(num_positions: int, d_model: int) -> Tensor:
    """Return fixed positions (num_positions, d_model): sines in one half, cosines in the other."""
    half = d_model // 2
    rates = torch.exp(-math.log(10000.0) / (half - 1) * torch.arange(half))
    angles = torch.arange(num_positions)[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def _init_weights(module: nn.Module) -> None:
    """Draw weights from N(0, 0.02) and zero biases; norms keep torch's ones and zeros."""
    if isinstance(module, (nn.Linear, nn.Conv1d, nn.Embedding)):
        nn.init.normal_(module.weight, std=_INIT_STD)
    if isinstance(module, (nn.Linear, nn.Conv1d)) and module.bias is not None:
        nn.init.zeros_(module.bias)
