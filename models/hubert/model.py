"""HuBERT: its network, and where that differs from wav2vec 2.0's.

Source:
    Hsu et al. 2021 (arXiv:2106.07447), section II. In eval mode the numbers are those of Hugging
    Face's ``transformers/models/hubert/modeling_hubert.py``.
"""

from dataclasses import dataclass

from torch import nn

from models.wav2vec2.config import Wav2Vec2Config
from models.wav2vec2.model import Wav2Vec2


@dataclass(frozen=True)
class HubertConfig(Wav2Vec2Config):
    """Sizes, dropouts and training masks; the defaults are hubert-base fine-tuned with CTC.

    Args:
        projection_norm: Whether features are normalised before they are projected.

    Source:
        Masks and layer drop of fairseq's ``examples/hubert/config/finetune/base_10h.yaml``.
    """

    layer_drop: float = 0.1
    mask_time_prob: float = 0.75
    mask_channel_prob: float = 0.5
    projection_norm: bool = True


class Hubert(Wav2Vec2):
    """HuBERT with a CTC head.

    Fine-tuned, it is wav2vec 2.0: the two differ in what they are pre-trained to predict. So this
    is a wav2vec 2.0, but for the norm before the projection, which a few models do without.

    Args:
        config: Sizes and training options.
    """

    family = "hubert"
    config: HubertConfig

    def __init__(self, config: HubertConfig) -> None:
        super().__init__(config)
        if not config.projection_norm:
            self.feature_projection.register_module("norm", nn.Identity())
