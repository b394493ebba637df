"""What a checkpoint says of where its weights come from, and what its teacher was."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, TypedDict

from data.files import has_type, shown


class FrontEndFacts(TypedDict, total=False):
    """The fields of a ``models.family.FrontEnd`` as a checkpoint's file holds them.

    ``kind`` is always there; {} stands for a front end that is not known.
    """

    kind: str
    sample_rate: int
    normalize: bool
    num_mels: int
    audio_ctx: float | str | None


class DecodingFacts(TypedDict, total=False):
    """Which ids hypotheses are made of, as a checkpoint's file holds them.

    Of a CTC model ``blank_id``; of a sequence-to-sequence model the others. {} stands for ids that
    are not known.
    """

    blank_id: int
    start_ids: Sequence[int]
    eos_id: int
    suppress_ids: Sequence[int]
    begin_suppress_ids: Sequence[int]
    max_tokens: int


class TrainingCost(TypedDict):
    """What training has taken, the earlier stages and the teacher of a run included."""

    fine_tuning_runs: int
    steps: int
    training_seconds: float


@dataclass(frozen=True, kw_only=True)
class TeacherFacts:
    """The model that a run learned from beside its targets.

    Attributes:
        path: As it was given; "self" is the run's own dense phase.
        weights_hash: Of its weights.
        cost: What training it has taken; None where that is part of the run's own cost.
    """

    path: str
    weights_hash: str
    cost: TrainingCost | None = None


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """Where the weights of a checkpoint come from; None is what is not known.

    Attributes:
        model: Name of the preset.
        target: What it was trained to recognise.
        phones: Phone set of a phone target.
        seed: Of the run.
        data: Corpus as it was given.
        corpus: Its format as it was given.
        resample: Whether recordings of other rates were resampled.
        method: Pruning method.
        sparsity: That the run asked for.
        scope: Name of the prune scope.
        biases: Whether biases are in the scope.
        scope_pattern: Regular expression of the whole names of the parameters in scope.
        init: Where the initial weights came from.
        init_cost: What fine-tuning them had taken; None where they were not fine-tuned.
        freeze: Module that training left as it was, or "none".
        new_head: Names of the parameters of a head that was new.
        weights_hash: Of the initial weights.
        steps: Optimizer steps of a full fine-tuning run.
        step: Optimizer step of the stage that the weights are of.
        teacher: What it learned from.
        converted_from: Format that the weights were converted from.
        head: Whether their head was "loaded" or is "new".
        drawn: Names of other parameters that the converted file lacked.
        head_rows: What was kept of a trained head, in words.
    """

    model: str | None = None
    target: str | None = None
    phones: int | None = None
    seed: int | None = None
    data: str | None = None
    corpus: str | None = None
    resample: bool | None = None
    method: str | None = None
    sparsity: float | None = None
    scope: str | None = None
    biases: bool | None = None
    scope_pattern: str | None = None
    init: str | None = None
    init_cost: TrainingCost | None = None
    freeze: str | None = None
    new_head: tuple[str, ...] = ()
    weights_hash: str | None = None
    steps: int | None = None
    step: int | None = None
    teacher: TeacherFacts | None = None
    converted_from: str | None = None
    head: str | None = None
    drawn: tuple[str, ...] = ()
    head_rows: str | None = None

    def stored(self) -> dict[str, Any]:
        """Return what is known, as a checkpoint's file and config.json hold it."""
        facts = {key: value for key, value in asdict(self).items() if value is not None}
        return {
            key: [*value] if isinstance(value, tuple) else value for key, value in facts.items()
        }


_TYPES: dict[object, str] = {
    str | None: "str or null",
    int | None: "int or null",
    bool | None: "bool or null",
    float | None: "number or null",
    tuple[str, ...]: "list of str",
    TeacherFacts | None: "dict of any or null",
    TrainingCost | None: "dict of number or null",
}


def read_facts(stored: Mapping[str, Any]) -> RunFacts:
    """Return the facts that a file holds; what else it holds is left out.

    Raises:
        ValueError: If a fact is of another type; names it.
    """
    known: dict[str, Any] = {}
    for field in fields(RunFacts):
        if field.name not in stored:
            continue
        value, wanted = stored[field.name], _TYPES[field.type]
        if not has_type(value, wanted):
            raise ValueError(f"run: {field.name} is {shown(value)}, expected {wanted}")
        known[field.name] = tuple(value) if wanted == "list of str" else value
    if known.get("teacher") is not None:
        known["teacher"] = _read_teacher(known["teacher"])
    return RunFacts(**known)


def _read_teacher(stored: Mapping[str, Any]) -> TeacherFacts:
    wanted = {"path": "str", "weights_hash": "str", "cost": "dict of number or null"}
    for name, kind in wanted.items():
        if not has_type(stored.get(name), kind):
            found = shown(stored.get(name))
            raise ValueError(f"run: teacher's {name} is {found}, expected {kind}")
    return TeacherFacts(**{name: stored[name] for name in wanted if name in stored})
