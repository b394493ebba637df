"""wav2vec 2.0: a convolutional feature encoder, a Transformer, a CTC head."""

from models.wav2vec2.config import Wav2Vec2Config
from models.wav2vec2.family import FAMILY
from models.wav2vec2.model import PRUNE_SCOPES, Wav2Vec2

__all__ = ["FAMILY", "PRUNE_SCOPES", "Wav2Vec2", "Wav2Vec2Config"]
