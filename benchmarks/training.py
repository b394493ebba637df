"""What the training items share: random utterances, one step of ours, one of a peer's."""

import re
import tempfile
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.common import Settings, import_peer
from data.log_mel import SAMPLE_RATE
from models import FAMILIES, SpeechModel
from models.convert import to_hf
from models.training.optim import Optimizer
from models.training.tasks import PRECISIONS, Task
from models.wav2vec2 import Wav2Vec2

MEAN_SECONDS, SD_SECONDS = 3.07, 0.86  # TIMIT's sentences
SHORTEST_SECONDS, LONGEST_SECONDS = 0.92, 7.8
TOKENS_PER_SECOND = 12.4  # TIMIT's phones
_TORCHAUDIO_RENAMES = (
    (r"^encoder\.feature_projection\.layer_norm", "feature_projection.norm"),
    (r"^encoder\.feature_projection\.projection", "feature_projection.proj"),
    (r"^feature_extractor\.conv_layers\.(\d+)\.layer_norm", r"feature_encoder.layers.\1.norm"),
    (r"^feature_extractor\.conv_layers", "feature_encoder.layers"),
    (r"^encoder\.transformer\.layer_norm", "encoder.norm"),
    (r"^encoder\.transformer", "encoder"),
    (r"pos_conv_embed\.conv\.parametrizations\.weight\.original0", "positional_conv.weight_g"),
    (r"pos_conv_embed\.conv\.parametrizations\.weight\.original1", "positional_conv.weight_v"),
    (r"pos_conv_embed\.conv\.bias", "positional_conv.bias"),
    (r"\.attention\.", ".self_attn."),
    (r"\.final_layer_norm", ".ffn_norm"),
    (r"(layers\.\d+)\.layer_norm", r"\1.attn_norm"),
    (r"\.feed_forward\.intermediate_dense", ".ffn.fc1"),
    (r"\.feed_forward\.output_dense", ".ffn.fc2"),
    (r"^aux", "head"),
)


def timit_like_seconds(count: int, seed: int = 0) -> list[float]:
    """Draw lengths of utterances with TIMIT's mean and deviation."""
    drawn = np.random.default_rng(seed).normal(MEAN_SECONDS, SD_SECONDS, count)
    return [float(x) for x in np.clip(drawn, SHORTEST_SECONDS, LONGEST_SECONDS)]


def random_waveforms(seconds: Sequence[float], device: torch.device, seed: int = 0) -> list[Tensor]:
    """Draw noise of unit variance, (S,) each."""
    generator = torch.Generator().manual_seed(seed)
    samples = [round(s * SAMPLE_RATE) for s in seconds]
    return [torch.randn(count, generator=generator).to(device) for count in samples]


def random_targets(counts: Sequence[int], low: int, high: int, seed: int = 0) -> list[list[int]]:
    """Draw ids in [low, high), so many for each utterance."""
    generator = np.random.default_rng((seed, 1))
    return [generator.integers(low, high, count).tolist() for count in counts]


def autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """Return the context that a peer's model runs in; ours enters its own."""
    dtype = PRECISIONS[precision]
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)


def loss_tolerance(settings: Settings) -> float:
    """Return how far float32 losses may differ, relatively; CUDA's convolutions use TF32."""
    return 1e-3 if settings.device.type == "cuda" else 1e-4


def hf_twin(model: SpeechModel, device: torch.device, **export: Any) -> Any:
    """Return Hugging Face's model with the same config and weights, with sdpa attention.

    Args:
        model: Ours.
        device: Where the twin goes.
        **export: ``decoding``, ``tokenizer`` and ``frontend`` for ``to_hf``.

    Returns:
        The twin; None where transformers or safetensors is not installed.
    """
    transformers = import_peer("transformers")
    if transformers is None or import_peer("safetensors") is None:
        return None
    extra: dict[str, Any] = {}
    if isinstance(model, Wav2Vec2):
        extra = {"ctc_loss_reduction": "sum", "ctc_zero_infinity": True}
    with tempfile.TemporaryDirectory() as folder:
        to_hf(model, Path(folder) / "twin", **export)
        twin = getattr(
            transformers, FAMILIES[model.family].hugging_face.architecture
        ).from_pretrained(
            Path(folder) / "twin", attn_implementation="sdpa", dtype=torch.float32, **extra
        )
    return twin.to(device)


def torchaudio_twin(model: Wav2Vec2, device: torch.device) -> Any:
    """Return torchaudio's model with the same weights and dropouts; None without torchaudio."""
    torchaudio = import_peer("torchaudio")
    if torchaudio is None:
        return None
    config = model.config
    convs = zip(config.conv_dims, config.conv_kernels, config.conv_strides, strict=True)
    twin = torchaudio.models.wav2vec2_model(
        extractor_mode="layer_norm" if config.conv_norm == "layer" else "group_norm",
        extractor_conv_layer_config=list(convs),
        extractor_conv_bias=config.conv_bias,
        encoder_embed_dim=config.d_model,
        encoder_projection_dropout=config.projection_dropout,
        encoder_pos_conv_kernel=config.positional_kernel,
        encoder_pos_conv_groups=config.positional_groups,
        encoder_num_layers=config.num_layers,
        encoder_num_heads=config.num_heads,
        encoder_attention_dropout=config.attention_dropout,
        encoder_ff_interm_features=config.ffn_dim,
        encoder_ff_interm_dropout=config.activation_dropout,
        encoder_dropout=config.dropout,
        encoder_layer_norm_first=config.norm_first,
        encoder_layer_drop=config.layer_drop,
        aux_num_out=config.vocab_size,
    )
    weights = model.state_dict()
    twin.load_state_dict({name: weights[native_name(name)] for name in twin.state_dict()})
    return twin.to(device)


def native_name(name: str) -> str:
    """Return our name of a parameter of torchaudio's wav2vec2."""
    for pattern, replacement in _TORCHAUDIO_RENAMES:
        name = re.sub(pattern, replacement, name)
    return name


def our_optimizer(model: nn.Module) -> Optimizer:
    """Return the optimizer of a run, its rate so low that the work stays the same."""
    return Optimizer(model, lr=1e-5, head_lr=1e-5, head=(), steps=1_000_000)


def begin_training(
    task: Task,
    inputs: Sequence[Tensor],
    targets: Sequence[Sequence[int]],
    batches: Sequence[Sequence[int]],
) -> Optimizer:
    """Return the optimizer of a model, whose steps on some batches are captured as a run's are.

    On CUDA a line says what memory that takes: replays take none when they are timed.
    """
    optimizer = our_optimizer(task.model)
    device = optimizer.gradients.vector.device
    before = torch.cuda.memory_reserved(device) if device.type == "cuda" else 0
    task.capture(inputs, targets, batches)
    if device.type == "cuda":
        taken = torch.cuda.memory_reserved(device) - before
        print(f"captured steps hold {taken / 1e9:.2f} GB", flush=True)
    return optimizer


def our_step(
    task: Task, optimizer: Optimizer, inputs: Sequence[Tensor], targets: Sequence[Sequence[int]]
) -> Tensor:
    """Take a step as train.py does; return the loss per target token, still on the device."""
    num_tokens = sum(max(1, len(target)) for target in targets)
    loss = task.loss(inputs, targets) / num_tokens
    optimizer.backward(loss)
    optimizer.step(0, loss.detach())
    return loss.detach()


def peer_step(model: nn.Module) -> Callable[[Tensor], None]:
    """Return a function that takes one step of a peer's model: clip 1.0, torch's plain AdamW."""
    params = [p for p in model.parameters() if p.requires_grad]
    adam = torch.optim.AdamW(params, lr=1e-7, weight_decay=0.0)

    def step(loss: Tensor) -> None:
        loss.backward()
        nn.utils.clip_grad_norm_(params, 1.0)
        adam.step()
        adam.zero_grad(set_to_none=True)

    return step
