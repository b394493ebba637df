"""HuBERT: the network of wav2vec 2.0, trained to predict clusters."""

from models.hubert.family import FAMILY
from models.hubert.model import Hubert, HubertConfig

__all__ = ["FAMILY", "Hubert", "HubertConfig"]
