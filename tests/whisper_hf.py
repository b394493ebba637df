"""Small whisper models of transformers and their weights under our names."""

import re

from torch import nn

from models.whisper import Whisper, WhisperConfig

SMALL = WhisperConfig(
    num_mels=8,
    audio_positions=20,
    text_positions=16,
    d_model=24,
    encoder_layers=2,
    decoder_layers=2,
    encoder_heads=2,
    decoder_heads=3,
    encoder_ffn_dim=40,
    decoder_ffn_dim=56,
    vocab_size=50,
)

_RENAMES = [
    (r"^model\.", ""),
    (r"^proj_out\.", "decoder.token_embedding."),
    (r"decoder\.embed_tokens\.", "decoder.token_embedding."),
    (r"embed_positions\.weight", "positions"),
    (r"self_attn_layer_norm", "attn_norm"),
    (r"encoder_attn_layer_norm", "cross_attn_norm"),
    (r"encoder_attn\.", "cross_attn."),
    (r"(layers\.\d+)\.final_layer_norm", r"\1.ffn_norm"),
    (r"(layers\.\d+)\.(fc[12])", r"\1.ffn.\2"),
    (r"^(encoder|decoder)\.layer_norm", r"\1.final_norm"),
]


def native_name(name: str) -> str:
    for pattern, replacement in _RENAMES:
        name = re.sub(pattern, replacement, name)
    return name


def hf_model(config: WhisperConfig) -> nn.Module:
    import transformers

    hf_config = transformers.WhisperConfig(
        vocab_size=config.vocab_size,
        num_mel_bins=config.num_mels,
        d_model=config.d_model,
        encoder_layers=config.encoder_layers,
        decoder_layers=config.decoder_layers,
        encoder_attention_heads=config.encoder_heads,
        decoder_attention_heads=config.decoder_heads,
        encoder_ffn_dim=config.encoder_ffn_dim,
        decoder_ffn_dim=config.decoder_ffn_dim,
        max_source_positions=config.audio_positions,
        max_target_positions=config.text_positions,
        dropout=config.dropout,
        attention_dropout=config.attention_dropout,
        activation_dropout=config.activation_dropout,
        pad_token_id=config.vocab_size - 1,
        bos_token_id=config.vocab_size - 1,
        eos_token_id=config.vocab_size - 1,
        decoder_start_token_id=config.vocab_size - 2,
    )
    return transformers.WhisperForConditionalGeneration(hf_config).eval()


def ours_from(hf: nn.Module, config: WhisperConfig) -> Whisper:
    ours = Whisper(config).to(next(hf.parameters()).dtype)  # before loading: no digit is lost
    ours.load_state_dict({native_name(name): value for name, value in hf.state_dict().items()})
    return ours.eval()
