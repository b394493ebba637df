"""What a family of models declares about itself, and what every model has in common.

A family is one folder under ``models``. Its record says everything that differs from one family to
another, so that nothing outside the folder asks which family a model is of.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, cast

from torch import Tensor, nn

from data.files import JsonObject, shown
from models.facts import DecodingFacts, FrontEndFacts
from models.fields import JsonFile
from models.spec_augment import SpecAugment
from models.tokenizers import Tokenizer
from models.weights import KeyMap


class SpeechModel(nn.Module):
    """A model of any family.

    Attributes:
        family: Name of its family, the key of its record in ``models.FAMILIES``.
        config: Its family's config, a frozen dataclass with a field ``vocab_size``.
    """

    family: ClassVar[str]
    config: Any


@dataclass(frozen=True)
class Waveform:
    """A front end that gives the waveform.

    Attributes:
        kind: "waveform".
        normalize: Whether each utterance gets zero mean and unit variance.
    """

    kind: str = field(default="waveform", init=False)
    normalize: bool = True


@dataclass(frozen=True)
class LogMel:
    """A front end that gives log-mels.

    Attributes:
        kind: "log_mel".
        num_mels: Mels of a frame.
        audio_ctx: Seconds that audio is padded to, "own" for each utterance's own length rounded up
            to a second, or None for 30 s.
    """

    kind: str = field(default="log_mel", init=False)
    num_mels: int
    audio_ctx: float | str | None = None


FrontEnd = Waveform | LogMel
"""What computes them is in ``data``."""


def front_end_facts(front_end: FrontEnd) -> FrontEndFacts:
    """Return the fields of a front end as a checkpoint holds them."""
    return cast(FrontEndFacts, asdict(front_end))


@dataclass(frozen=True)
class Recipe:
    """Peak learning rates, amounts of data, and what keeps a model from learning it by heart.

    Attributes:
        lr: Peak learning rate.
        head_lr: Peak learning rate of a new head.
        batch_seconds: Audio in a batch, padding included.
        epochs: Passes over the training set.
        hold: Share of the steps at the peak rate.
        mask_time: Share of frames hidden in training; None is what the preset has, and of log-mels
            0.
        mask_channel: The same of channels, or of mels.
        dropout: Probability of every dropout; None is what the preset has.
        label_smoothing: Of a sequence-to-sequence loss.
    """

    lr: float
    head_lr: float
    batch_seconds: float
    epochs: float
    hold: float
    mask_time: float | None = None
    mask_channel: float | None = None
    dropout: float | None = None
    label_smoothing: float = 0.0

    @property
    def spec_augment(self) -> SpecAugment:
        """What training hides of a log-mel."""
        return SpecAugment(self.mask_time or 0.0, self.mask_channel or 0.0)


@dataclass(frozen=True)
class Preset:
    """A named model.

    Attributes:
        config: Config fields that differ from the family's defaults.
        hub_id: Repository on the model hub, None for a model of our own.
        recipe: How it is fine-tuned where that is not as its family is.
    """

    config: Mapping[str, Any] = field(default_factory=dict)
    hub_id: str | None = None
    recipe: Recipe | None = None


@dataclass
class Settings:
    """What stands beside the weights of a model, as a checkpoint holds it.

    Attributes:
        tokenizer: None where there is none.
        frontend: {} where it is not known.
        decoding: {} where it is not known.
    """

    tokenizer: Tokenizer | None = None
    frontend: FrontEndFacts = field(default_factory=FrontEndFacts)
    decoding: DecodingFacts = field(default_factory=DecodingFacts)


@dataclass
class HuggingFaceFolder:
    """What a Hugging Face folder holds: JSON files by name, weights by Hugging Face's names."""

    files: dict[str, JsonObject]
    tensors: dict[str, Tensor]


@dataclass(frozen=True)
class HuggingFace:
    """How a family's models stand in Hugging Face folders.

    Attributes:
        model_type: Name of the family in ``config.json``.
        architecture: The class in ``transformers`` that has all of the model.
        keys: Their parameter names and ours.
        config: Name of a setting there, its name here, its type (as in ``models.fields``), and the
            default there (old files leave defaults out).
        required: Settings that change what a model computes, and the only value that ours computes.
        read_config: Takes all of their settings and ours as read by ``config``; returns ours.
        finish_config: Takes our model, decoding settings and their settings as written by
            ``config``; returns theirs.
        may_lack: Takes their parameter names; returns our names of parameters that the file does
            without.
        read_settings: Takes our config and their ``config.json``; reads what stands beside it.
        write_settings: Takes our model and settings; adds files to the folder, and changes what in
            it depends on them.
    """

    model_type: str
    architecture: str
    keys: KeyMap
    config: tuple[tuple[str, str, str, Any], ...]
    required: Mapping[str, Any]
    read_config: Callable[[JsonFile, JsonObject], JsonObject]
    finish_config: Callable[[Any, DecodingFacts, JsonObject], JsonObject]
    may_lack: Callable[[Collection[str]], tuple[str, ...]]
    read_settings: Callable[[Any, JsonFile], Settings]
    write_settings: Callable[[Any, Settings, HuggingFaceFolder], None]


@dataclass
class ExportedFolder:
    """The files of a model for another program.

    Attributes:
        json: What JSON files hold, by name.
        binary: Functions that write the other files, by name.
        num_parameters: Of the model as it is written.
    """

    json: JsonObject
    binary: dict[str, Callable[[BinaryIO], object]]
    num_parameters: int


@dataclass(frozen=True)
class ForeignExport:
    """How a model is written for another program.

    Attributes:
        to: What ``models.convert --to`` calls the format.
        write: Takes our model, what stands beside it, and how values are stored (a key of
            ``models.packed.VALUES``); returns the files of a folder.
        load_with: Python that loads the written folder ``"FOLDER"`` and gives the text of
            ``waveform``, for the folder's card.
    """

    to: str
    write: Callable[[Any, Settings, str], ExportedFolder]
    load_with: str


@dataclass(frozen=True)
class ForeignFormat:
    """A further format that a family's weights come in.

    Attributes:
        name: Of the format.
        looks_like: What a message says of it.
        fits: Takes the path and, of a file of ``torch.save``, what it holds (None of a folder);
            tells whether it is of this format.
        read: Takes the same; returns model and settings.
        export: How it is written; None where it is not.
    """

    name: str
    looks_like: str
    fits: Callable[[Path, Any], bool]
    read: Callable[[Path, Any], tuple[SpeechModel, Settings]]
    export: ForeignExport | None = None


@dataclass(frozen=True, kw_only=True)
class Family:
    """All that the rest of the project has to know about a family.

    Attributes:
        model: Its class; called with a config it has random weights.
        config: The class of its configs.
        old_config_fields: What configs of older checkpoints hold and ours no longer has.
        presets: Models by the name that a command line gives.
        prune_scopes: Patterns that match the names of the prunable parameters of a scope; the
            default scope first.
        head: Names of the parameters that stand for the vocabulary.
        freezable: Modules that training may leave as they are; in pre-trained weights the first is
            left so by default.
        front_end: Returns the front end that a config asks for.
        seq2seq: Whether the model writes text token by token, and its config limits it to
            ``text_positions`` tokens; else it is trained with CTC.
        targets: What it can be trained to recognise.
        task: Takes the arguments of ``models.build_task``; returns what training and scoring ask of
            the model (``models.training.tasks.Task``).
        reset_vocabulary: Takes model, its tokenizer (or None) and a new one; gives the model a head
            for the new one and returns the decoding settings.
        recipe: How its models are fine-tuned.
        target_recipes: The same by target where it differs.
        decode_seconds: Audio decoded together, padding included.
        hugging_face: Its Hugging Face folders.
        formats: What else its weights come in.
    """

    model: type[SpeechModel]
    config: type[Any]
    old_config_fields: tuple[str, ...] = ()
    presets: Mapping[str, Preset]
    prune_scopes: Mapping[str, str]
    head: tuple[str, ...]
    freezable: tuple[str, ...] = ()
    front_end: Callable[[Any], FrontEnd]
    seq2seq: bool
    targets: tuple[str, ...]
    task: Callable[..., Any]
    reset_vocabulary: Callable[[Any, Tokenizer | None, Tokenizer], DecodingFacts]
    recipe: Recipe
    target_recipes: Mapping[str, Recipe] = field(default_factory=dict)
    decode_seconds: float
    hugging_face: HuggingFace
    formats: tuple[ForeignFormat, ...] = ()

    def scope_pattern(self, scope: str, biases: bool) -> str:
        """Return a regular expression of the whole names of the parameters in a scope."""
        pattern = self.prune_scopes[scope]
        return pattern if biases else rf"(?!.*\bbias$)(?:{pattern})"

    def check_pattern(self, pattern: str | None) -> None:
        """Check that a pattern out of a file is one of ours: others may take for ever to match.

        Raises:
            ValueError: If it is that of no scope.
        """
        ours = {
            self.scope_pattern(s, biases) for s in self.prune_scopes for biases in (True, False)
        }
        if pattern is not None and pattern not in ours:
            raise ValueError(
                f"run: scope_pattern is {shown(pattern)}, that of no {self.name} scope"
            )

    @property
    def name(self) -> str:
        """Name of the family, as checkpoints hold it."""
        return self.model.family

    @property
    def demo(self) -> str:
        """Name of a preset that needs no pre-trained weights."""
        return next(name for name, preset in self.presets.items() if preset.hub_id is None)
