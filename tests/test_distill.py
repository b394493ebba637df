"""The loss of a student with a teacher, held against the formula, utterance by utterance."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import build_model, build_task
from models.draw import Draw
from models.spec_augment import SpecAugment
from models.training.distill import Distillation, DistillOptions, logit_divergence, state_distance
from models.training.tasks import Outputs, Padded, Task

START, END, BLANK = [1, 7], 2, 0
SEQ2SEQ = {
    "start_ids": START,
    "eos_id": END,
    "max_tokens": 20,
    "suppress_ids": [],
    "begin_suppress_ids": [],
}
TARGETS = [[3, 4, 4], [5], [6, 3, 8, 5, 4]]


@dataclass
class Case:
    """Two models of one kind and utterances for them."""

    student: Task
    teacher: Task
    inputs: list[Tensor]
    layers: Callable[[Any], list[nn.Module]]

    def distillation(self, memory: float = math.inf, **options: float) -> Distillation:
        given = DistillOptions(**{"temperature": 1.7, **options})
        return Distillation(
            self.student, self.teacher, self.inputs.__getitem__, TARGETS, given, memory
        )

    def losses(self, *utterances: int, memory: float = math.inf, **options: float) -> Tensor:
        utterances = utterances or (0, 1, 2)
        inputs = [self.inputs[i] for i in utterances]
        draw = Draw(5, utterances)
        return self.distillation(memory, **options).losses(utterances, inputs, draw)


@pytest.fixture(params=["ctc", "ctc-waveforms", "seq2seq"])
def case(request: pytest.FixtureRequest, randomise: Any) -> Case:
    """A student in training, which hides something of every utterance, and another teacher."""
    torch.set_default_dtype(torch.float64)
    if request.param == "seq2seq":
        models = [randomise(build_model("whisper-demo"), seed=seed) for seed in (1, 2)]
        spec_augment = SpecAugment(frames=0.2, mels=0.2)
        student = build_task(models[0].train(), SEQ2SEQ, spec_augment=spec_augment)
        teacher = build_task(models[1].train(), SEQ2SEQ)
        inputs = [torch.randn(80, 60) for _ in TARGETS]
        return Case(student, teacher, inputs, lambda m: [*m.encoder.layers, *m.decoder.layers])
    hidden = {"mask_time_prob": 0.3, "mask_channel_prob": 0.3, "mask_time_length": 3}
    models = [
        randomise(build_model("w2v2-demo", vocab_size=9, **hidden), seed=seed) for seed in (1, 2)
    ]
    student, teacher = (build_task(model.train(), {"blank_id": BLANK}) for model in models)
    lengths = [6000, 4100, 7300]
    inputs = [torch.randn(length) for length in lengths]
    if request.param == "ctc":
        models[0].feature_encoder.requires_grad_(False)
        inputs = [torch.randn(models[0].num_frames(length), 96) for length in lengths]
    return Case(student, teacher, inputs, lambda m: list(m.encoder.layers))


def _alone(case: Case, task: Task, i: int, draw: Draw | None) -> tuple[Tensor, list[Tensor]]:
    """Return logits (P, V) where they count and every layer's output (P, D) of one utterance."""
    states: list[Tensor] = []
    hooks = [
        layer.register_forward_hook(lambda module, args, output: states.append(output[0]))
        for layer in case.layers(task.model)
    ]
    source = case.inputs[i][None]
    if case.inputs[i].dim() == 1:
        logits = task.model.logits(source, draw=draw)
    elif hasattr(task.model, "feature_encoder"):
        logits = task.model.logits_from_features(source, draw=draw)
    else:
        spec_augment = getattr(task, "spec_augment", None)
        source = spec_augment(source, draw) if draw and spec_augment else source
        logits = task.model.logits(source, torch.tensor([[*START, *TARGETS[i]]]))
        states = [state if len(state) == 30 else state[len(START) - 1 :] for state in states]
        logits = logits[:, len(START) - 1 :]
    for hook in hooks:
        hook.remove()
    return logits[0], states


def _reference(case: Case, i: int, task: float, logits: float, hidden: float) -> Tensor:
    """Write the formula out for one utterance, place by place."""
    target, temperature = TARGETS[i], 1.7
    of_student, states = _alone(case, case.student, i, Draw(5, [i]))
    case.teacher.model.eval()
    with torch.no_grad():
        of_teacher, taught = _alone(case, case.teacher, i, None)

    log_probs = of_student.log_softmax(-1)
    if hasattr(case.student.model, "feature_encoder"):
        lengths = torch.tensor(len(log_probs)), torch.tensor(len(target))
        task_loss = F.ctc_loss(log_probs, torch.tensor(target), *lengths, BLANK, "sum")
    else:
        task_loss = -sum(log_probs[k, token] for k, token in enumerate([*target, END]))

    divergence = torch.zeros(())
    for s, t in zip(of_student, of_teacher, strict=True):
        p, q = (t / temperature).softmax(0), (s / temperature).softmax(0)
        divergence = divergence + (p * (p / q).log()).sum()

    distance = torch.zeros(())
    for layer, of_layer in zip(states, taught, strict=True):
        ratios = [(s - t).norm() ** 2 / t.norm() ** 2 for s, t in zip(layer, of_layer, strict=True)]
        distance = distance + sum(ratios) / len(ratios)
    return task * task_loss + logits * temperature**2 * divergence + hidden * len(target) * distance


@pytest.mark.parametrize("weights", [(0.5, 1.0, 0.0), (0.3, 0.0, 0.7), (0.0, 2.0, 1.5)])
def test_loss_and_gradients_are_those_of_the_formula(
    case: Case, weights: tuple[float, float, float]
) -> None:
    task, logits, hidden = weights
    names = ("distill_task", "distill_logits", "distill_hidden")
    losses = case.losses(**dict(zip(names, weights, strict=True)))
    params = [p for p in case.student.model.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(losses[0], params, allow_unused=True)
    reference = sum(_reference(case, i, task, logits, hidden) for i in range(3))
    assert isinstance(reference, Tensor)
    expected = torch.autograd.grad(reference, params, allow_unused=True)

    assert losses[0].item() == pytest.approx(reference.item(), rel=1e-11)
    for ours, theirs in zip(gradients, expected, strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None and theirs is not None:
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-9)  # 3e-12 was seen


def test_terms_are_those_that_the_loss_is_the_weighted_sum_of(case: Case) -> None:
    options = {"distill_task": 0.3, "distill_logits": 0.7, "distill_hidden": 1.1}
    names = case.distillation(**options).names
    assert names == ("loss", "task_loss", "logit_loss", "hidden_loss")
    loss, task, logits, hidden = case.losses(**options).tolist()
    assert task == pytest.approx(case.student.loss(case.inputs, TARGETS, Draw(5, range(3))).item())
    assert loss == pytest.approx(0.3 * task + 0.7 * 1.7**2 * logits + 1.1 * hidden)


def test_terms_without_weight_are_not_computed(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(case.teacher, "outputs", lambda *args, **kwargs: pytest.fail("asked"))
    distillation = case.distillation(distill_task=1.0, distill_logits=0.0)
    assert distillation.names == ("loss", "task_loss")
    plain = case.student.loss(case.inputs, TARGETS, Draw(5, range(3)))
    losses = distillation.losses(range(3), case.inputs, Draw(5, range(3)))
    assert losses[0].item() == losses[1].item() == plain.item()


def test_loss_of_a_batch_is_the_sum_of_its_parts(case: Case) -> None:
    whole = case.losses(distill_hidden=1.0)
    parts = case.losses(0, 2, distill_hidden=1.0) + case.losses(1, distill_hidden=1.0)
    torch.testing.assert_close(parts, whole, rtol=1e-11, atol=0)


def test_kept_outputs_give_the_loss_that_computed_ones_give(
    case: Case, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = case.distillation(distill_hidden=1.0)
    first = kept.losses([1, 0, 2], [case.inputs[i] for i in (1, 0, 2)], Draw(5, [1, 0, 2]))
    again = kept.losses([1, 0, 2], [case.inputs[i] for i in (1, 0, 2)], Draw(5, [1, 0, 2]))
    assert "outputs" not in capsys.readouterr().err
    never = case.losses(1, 0, 2, distill_hidden=1.0, memory=1.0)
    assert torch.equal(first, again)
    assert torch.equal(first, never)
    assert "kept for 0 of 3 utterances" in capsys.readouterr().err


def test_teacher_is_asked_once_for_each_utterance_and_alone(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    outputs = case.teacher.outputs

    def record(inputs: Any, targets: Any, **kwargs: Any) -> Outputs:
        asked.append(targets)
        return outputs(inputs, targets, **kwargs)

    monkeypatch.setattr(case.teacher, "outputs", record)
    distillation = case.distillation()
    for batch in ([0, 1], [2, 0], [1, 2]):
        distillation.losses(batch, [case.inputs[i] for i in batch], Draw(0, [0, 1]))
    assert asked == [[TARGETS[0]], [TARGETS[1]], [TARGETS[2]]]


def test_student_that_is_its_teacher_and_sees_everything_has_nothing_to_learn(case: Case) -> None:
    case.teacher.model.load_state_dict(case.student.model.state_dict())
    case.student.model.eval()
    losses = case.losses(distill_task=0.0, distill_hidden=1.0)
    assert losses[2:].abs().max().item() < 1e-10
    params = [p for p in case.student.model.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(losses[0], params, allow_unused=True)
    assert max(float(g.abs().max()) for g in gradients if g is not None) < 1e-9


def test_teacher_gets_no_gradient_and_student_keeps_training(case: Case) -> None:
    case.losses(distill_hidden=1.0)[0].backward()
    assert all(parameter.grad is None for parameter in case.teacher.model.parameters())
    assert not case.teacher.model.training
    assert case.student.model.training


def test_divergence_is_from_the_teacher_to_the_student() -> None:
    p, q = torch.tensor([0.8, 0.2]), torch.tensor([0.5, 0.5])
    student = Padded(q.log()[None, None], torch.tensor([1]))
    by_hand = 0.8 * math.log(0.8 / 0.5) + 0.2 * math.log(0.2 / 0.5)
    assert logit_divergence(student, [p.log()[None]], 1.0).item() == pytest.approx(by_hand)


def test_divergence_at_a_temperature_is_that_of_softened_distributions() -> None:
    student = Padded(torch.tensor([[[0.0, 0.0]]]), torch.tensor([1]))
    p = 1 / (1 + math.exp(-1.5))
    by_hand = p * math.log(2 * p) + (1 - p) * math.log(2 * (1 - p))
    assert logit_divergence(student, [torch.tensor([[3.0, 0.0]])], 2.0).item() == pytest.approx(
        by_hand
    )


def test_padding_adds_nothing_to_either_term() -> None:
    values = torch.randn(2, 4, 3)
    padded = Padded(values, torch.tensor([4, 2]))
    cut = [Padded(values[:1], torch.tensor([4])), Padded(values[1:, :2], torch.tensor([2]))]
    taught = [torch.randn(4, 3), torch.randn(2, 3)]
    for term in (
        lambda of, by, tokens: logit_divergence(of, by, 2.0),
        lambda of, by, tokens: state_distance(of, by, tokens),
    ):
        parts = sum(term(cut[i], [taught[i]], [i + 1]) for i in range(2))
        assert term(padded, taught, [1, 2]).item() == pytest.approx(float(parts), rel=1e-5)


def test_distance_is_relative_and_a_mean_over_places() -> None:
    taught = torch.tensor([[2.0, 0.0], [0.0, 10.0]])
    student = Padded(torch.tensor([[[2.0, 1.0], [0.0, 0.0]]]), torch.tensor([2]))
    assert state_distance(student, [taught], [6]).item() == pytest.approx(6 * (0.25 + 1.0) / 2)


@pytest.mark.parametrize(
    "options",
    [
        {"distill_task": -0.1},
        {"distill_logits": math.nan},
        {"distill_hidden": math.inf},
        {"distill_task": 0.0, "distill_logits": 0.0},
    ],
)
def test_weights_that_are_none_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="weights: give none below 0 and one above"):
        DistillOptions(**options)
