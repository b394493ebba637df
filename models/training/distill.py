"""The loss of a model that learns from a teacher, a finished model, and not from targets alone.

    L = a * task loss + b * T^2 * KL(teacher || student at temperature T) + c * hidden states

Every term is a sum over utterances, so that processes may share a batch and a step may add up
several; the training loop divides by the step's target tokens, as it does without a teacher.

The teacher sees the student's input as it is before training hides parts of it, in eval
mode and in the student's precision. So what it says of an utterance never changes, and is kept.

Shape letters: B utterances, P places, V vocab, D d_model.
"""

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from data.files import Schema, check_fields, read_json
from data.options import option
from models import FAMILIES
from models.checkpoint import Checkpoint
from models.device import send
from models.draw import Draw
from models.facts import TrainingCost
from models.training.tasks import Padded, Task, at_least_float32

SELF = "self"
_COST: Schema = {"fine_tuning_runs": "id", "steps": "id", "training_seconds": "number"}


@dataclass(frozen=True, kw_only=True)
class DistillOptions:
    """What is learned from a teacher.

    Every field is a flag of train.py; without a teacher the others change nothing.

    Raises:
        ValueError: If a weight is negative, or all are 0.
    """

    teacher: str | None = option(
        "finished run or checkpoint whose outputs are learned too, or self, this run at the end of "
        "its dense phase; without it only the targets are",
        None,
    )
    distill_task: float = option("weight of the loss against the targets", 0.5)
    distill_logits: float = option(
        "weight of the divergence from the teacher's logits, times the squared temperature", 1.0
    )
    distill_hidden: float = option("weight of the distance from the teacher's hidden states", 0.0)
    temperature: float = option("what both models' logits are divided by", 2.0, positive=True)

    def __post_init__(self) -> None:
        """Check the ranges, then what other options check."""
        weights = (self.distill_task, self.distill_logits, self.distill_hidden)
        if not all(0.0 <= weight < math.inf for weight in weights) or not any(weights):
            raise ValueError(
                "--distill-task, --distill-logits and --distill-hidden are weights: give none "
                "below 0 and one above"
            )
        inherited: Any = getattr(super(), "__post_init__", None)
        if inherited is not None:
            inherited()


class Distillation:
    """The loss of a student and what its teacher says of each utterance.

    Args:
        student: Its model trains.
        teacher: Of the same targets; its model is put in eval mode and frozen.
        input_of: Returns the teacher's input of training utterance number i.
        targets: Ids of every training utterance.
        options: Weights and temperature.
        memory: Bytes that the teacher's outputs may fill. What does not fit is computed anew in
            every step, to the same numbers, and a line on stderr says so.

    Source:
        Hinton et al. 2015 (arXiv:1503.02531), section 2, for the divergence, which is that of
        oBERT's recipes (Kurtic et al. 2022, arXiv:2203.07259). SquareHead (Kurtic et al. 2023,
        arXiv:2310.06927; ``scripts/train/train_sparse.py`` of IST-DASLab/SparseFinetuning) for the
        hidden states. Theirs takes one ratio over all tokens of a batch, this one at each place,
        then the mean over the places of an utterance, so that no utterance depends on its batch
        mates; and a decoder's start ids but the last are left out.
    """

    def __init__(
        self,
        student: Task,
        teacher: Task,
        input_of: Callable[[int], Tensor],
        targets: Sequence[Sequence[int]],
        options: DistillOptions,
        memory: float = math.inf,
    ) -> None:
        teacher.model.eval().requires_grad_(False)
        self._student, self._teacher = student, teacher
        self._input_of = input_of
        self._targets = targets
        self._options = options
        self._kept: dict[int, list[Tensor]] = {}
        weights = {
            "task_loss": options.distill_task,
            "logit_loss": options.distill_logits * options.temperature**2,
            "hidden_loss": options.distill_hidden,
        }
        self._weights = {k: v for k, v in weights.items() if v or k == "task_loss"}
        self._memory_left = memory

    @property
    def compares_states(self) -> bool:
        """Whether hidden states play a part."""
        return "hidden_loss" in self._weights

    @property
    def names(self) -> tuple[str, ...]:
        """What ``losses`` returns: the loss, then the terms of which it is the weighted sum."""
        return ("loss", *self._weights)

    def losses(
        self, utterances: Sequence[int], inputs: Sequence[Tensor], draw: Draw | None = None
    ) -> Tensor:
        """Return the loss of some training utterances and its terms, each summed over them.

        Args:
            utterances: Their numbers.
            inputs: What the student is fed, one each.
            draw: Where the random numbers of what the student doesn't see come from.

        Returns:
            Float32 or more precise, one each of ``names``; the first has the gradient.
        """
        weights = self._weights
        targets = [self._targets[i] for i in utterances]
        outputs = self._student.outputs(inputs, targets, draw, self.compares_states)
        terms = {"task_loss": self._student.loss_of(outputs, targets)}

        if len(weights) > 1:
            taught = [self._taught(i) for i in utterances]
            logits, *states = zip(*taught, strict=True)
        if "logit_loss" in weights:
            temperature = self._options.temperature
            terms["logit_loss"] = logit_divergence(outputs.logits, logits, temperature)
        if self.compares_states:
            tokens = [max(1, len(target)) for target in targets]
            layers = zip(outputs.states, states, strict=True)
            distances = [state_distance(student, of, tokens) for student, of in layers]
            terms["hidden_loss"] = torch.stack(distances).sum()

        weighted = [weight * terms[name] for name, weight in weights.items()]
        return torch.stack([torch.stack(weighted).sum(), *terms.values()])

    def _taught(self, utterance: int) -> list[Tensor]:
        """Return the teacher's logits (P, V) and states (P, D), computed where they aren't kept.

        An utterance is always computed alone, so that the numbers are the same whichever batch
        asks for them first.
        """
        if utterance in self._kept:
            return self._kept[utterance]
        with torch.no_grad():
            outputs = self._teacher.outputs(
                [self._input_of(utterance)],
                [self._targets[utterance]],
                with_states=self.compares_states,
            )
        taught = [of.values[0].clone() for of in (outputs.logits, *outputs.states)]

        size = sum(tensor.nbytes for tensor in taught)
        if size <= self._memory_left:
            self._kept[utterance] = taught
            self._memory_left -= size
        elif self._memory_left:
            self._memory_left = 0.0  # so that it is said once
            tqdm.write(
                f"the teacher's outputs are kept for {len(self._kept)} of {len(self._targets)} "
                "utterances, which is what memory holds; the others are computed in every step",
                file=sys.stderr,
            )
        return taught


def logit_divergence(student: Padded, teacher: Sequence[Tensor], temperature: float) -> Tensor:
    """Return KL(teacher || student), summed over all places.

    That is the sum over p_t (log p_t - log p_s), p the softmax of logits over ``temperature``. Of
    CTC, whose frames are independent given the audio, it is the divergence between the
    distributions of whole paths; so it stands to the CTC loss as that of tokens stands to the
    cross-entropy.

    Args:
        student: Logits (B, P, V).
        teacher: Logits of each utterance at its own places, (places, V).
        temperature: What both are divided by.
    """
    log_probs, taught = (
        (at_least_float32(logits) / temperature).log_softmax(-1)
        for logits in (student.values, pad_sequence(list(teacher), batch_first=True))
    )
    divergence = F.kl_div(log_probs, taught, reduction="none", log_target=True).sum(-1)  # (B, P)
    return divergence.masked_fill(~_is_place(student), 0.0).sum()


def state_distance(student: Padded, teacher: Sequence[Tensor], tokens: Sequence[int]) -> Tensor:
    """Return the relative squared distance ||h_s - h_t||^2 / ||h_t||^2 of one layer's states.

    It is taken at each place, then as the mean over an utterance's places times its tokens, and
    summed: divided by all tokens it is a mean, however many frames there are to a token.

    Args:
        student: States (B, P, D).
        teacher: States of each utterance at its own places, (places, D).
        tokens: Target tokens of each utterance.
    """
    states = at_least_float32(student.values)
    taught = at_least_float32(pad_sequence(list(teacher), batch_first=True))
    is_place = _is_place(student)
    sizes = taught.square().sum(-1).masked_fill(~is_place, 1.0)  # (B, P)
    sizes = sizes.clamp(min=torch.finfo(sizes.dtype).tiny)
    ratios = ((states - taught).square().sum(-1) / sizes).masked_fill(~is_place, 0.0)
    weights = send(torch.tensor(tokens) / student.lengths, ratios.device)
    return (ratios.sum(1) * weights).sum()


def _is_place(padded: Padded) -> Tensor:
    """Return bool (B, P), False where there is padding."""
    width = padded.values.shape[1]
    return send(torch.arange(width) < padded.lengths[:, None], padded.values.device)


def prepares_alike(teacher: Task, student: Task) -> bool:
    """Return whether the student's prepared inputs are what the teacher would prepare.

    Sources that nothing is prepared of are. Features of a frozen feature encoder are, where the
    teacher's has the same weights; the teacher counts as frozen.
    """
    computed_with = student.prepares_with()
    if not computed_with:
        return True
    teacher.model.requires_grad_(False)
    others = teacher.prepares_with()
    return computed_with.keys() == others.keys() and all(
        torch.equal(computed_with[name], others[name]) for name in others
    )


def find_teacher(name: str, out: Path) -> Path:
    """Return the checkpoint file of a teacher.

    Args:
        name: A run folder or a checkpoint file.
        out: The folder of the run that is to learn from it.

    Raises:
        ValueError: If it is not there, not finished, or in ``out``.
    """
    path = Path(name)
    file = path / "best.pt" if path.is_dir() else path
    if out.resolve() in (path.resolve(), file.parent.resolve()):
        raise ValueError(
            f"--teacher {name} is this run itself: give another run, or self for the dense phase "
            "of this one"
        )
    if path.is_dir() and not (path / "results.json").is_file():
        raise ValueError(
            f"--teacher {name} holds no finished run, there is no results.json in it: finish it, "
            "or give the file of a checkpoint"
        )
    if not file.is_file():
        raise ValueError(
            f"--teacher {name}: there is no {file}; give the folder of a finished run, the file of "
            "a checkpoint, or self"
        )
    return file


def training_cost(path: Path, checkpoint: Checkpoint) -> TrainingCost:
    """Return what training a model took, as its run's folder or else its checkpoint tells.

    A checkpoint that is not in the folder of a finished run does not tell the seconds, and one with
    converted weights nothing: those count 0.

    Raises:
        ValueError: If the results in its folder are damaged.
    """
    results = (path if path.is_dir() else path.parent) / "results.json"
    if results.is_file():
        found = read_json(results)
        if "cost" in found:
            check_fields(found["cost"], _COST, results, within="cost")
            cost: TrainingCost = found["cost"]
            return cost
    steps = checkpoint.run.step or 0
    return {"fine_tuning_runs": int(steps > 0), "steps": steps, "training_seconds": 0.0}


def check_teacher(
    name: str, teacher: Checkpoint, student: Checkpoint, lengths: Sequence[int], hidden: bool
) -> None:
    """Check that what one model gives can be held against what another gives.

    Args:
        name: What the teacher is called in messages.
        teacher: The model to learn from.
        student: The model that learns.
        lengths: Samples of the utterances that it learns on.
        hidden: Whether hidden states are compared too.

    Raises:
        ValueError: If it can't; says why.
    """
    taught_by, taught = (FAMILIES[each.model.family] for each in (teacher, student))
    if taught_by.seq2seq != taught.seq2seq:
        raise ValueError(
            f"--teacher {name} is a {taught_by.name}, whose outputs stand at other places than "
            f"those of a {taught.name}: give a teacher of the student's kind"
        )

    target, wanted = teacher.run.target, student.run.target
    if target not in (None, wanted):
        raise ValueError(
            f"--teacher {name} was trained on target {target}, this run is on {wanted}: give a "
            f"teacher with --target {wanted}"
        )

    if _meaning(teacher) != _meaning(student):
        raise ValueError(
            f"--teacher {name} has another tokenizer, so its outputs stand for other symbols: "
            "give a teacher that was trained on the same targets"
        )

    contexts = [each.frontend.get("audio_ctx") for each in (teacher, student)]
    if contexts[0] == "own" != contexts[1]:
        raise ValueError(
            f"--teacher {name} hears each utterance at its own length, and the student's batches "
            "hold several lengths: train with --audio-ctx own"
        )

    models: list[Any] = [teacher.model, student.model]
    has_frames = not taught.seq2seq
    if has_frames and any(len({each.num_frames(n) for each in models}) > 1 for n in set(lengths)):
        raise ValueError(
            f"--teacher {name} has other frames than the student: give a teacher whose "
            "convolutions have the same kernels and strides"
        )

    if hidden and _layout(teacher) != _layout(student):
        shown = " and ".join(", ".join(_layout(each).values()) for each in (teacher, student))
        raise ValueError(
            f"--distill-hidden can't compare the states of --teacher {name} with the student's, "
            f"they have {shown}: leave it at 0, logits can be compared"
        )


def _meaning(checkpoint: Checkpoint) -> list[object]:
    """Return what the outputs of a model stand for."""
    ids = [checkpoint.decoding.get(key) for key in ("blank_id", "start_ids", "eos_id")]
    return [checkpoint.tokenizer and checkpoint.tokenizer.spec(), *ids]


def _layout(checkpoint: Checkpoint) -> dict[str, str]:
    """Describe the states of a model: their width, number and places."""
    config = checkpoint.config
    named = {
        "d_model": "width",
        "num_layers": "layers",
        "encoder_layers": "encoder layers",
        "decoder_layers": "decoder layers",
    }
    layout = {k: f"{name} {getattr(config, k)}" for k, name in named.items() if hasattr(config, k)}
    if "audio_ctx" in checkpoint.frontend:
        layout["audio_ctx"] = f"audio context {checkpoint.frontend['audio_ctx'] or 'full'}"
    return layout
