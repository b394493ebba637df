"""What every method in the registry has to keep, so that a new one is tested for free."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from pruning.interface import Reprune, Schedule
from pruning.masks import count_zeros, measured_sparsity
from pruning.schedules import PARP, SCHEDULES, MethodOptions, build_schedule

PRUNING = [name for name in SCHEDULES if name != "dense"]
STATIC = [name for name in PRUNING if not issubclass(SCHEDULES[name], PARP)]
ADJUSTING = [name for name in PRUNING if issubclass(SCHEDULES[name], PARP)]
MANY_SPARSITIES = ["imp", "parp-p", "gmp"]
PATTERNED = [name for name in PRUNING if name not in MANY_SPARSITIES]
STEPS = 9


class _Fit:
    """A miniature of the loop in train.py: two layers in scope, a norm and a head outside."""

    def __init__(self, schedule: Schedule, seed: int = 0) -> None:
        self.schedule, self.seed = schedule, seed
        self.watch: Callable[[dict[str, Tensor], int], None] = lambda params, step: None
        self.events: list[Reprune] = []
        self.begin(0, None)

    def begin(self, stage: int, previous: dict[str, Tensor] | None) -> None:
        torch.manual_seed(self.seed)
        self.model = nn.Sequential(
            nn.Linear(8, 12), nn.LayerNorm(12), nn.Tanh(), nn.Linear(12, 8), nn.Linear(8, 2)
        ).double()
        named = dict(self.model.named_parameters())
        self.outside = {n: p.detach().clone() for n, p in named.items() if n[0] not in "03"}
        self.params = {name: p for name, p in named.items() if name[0] in "03"}
        self.adam = torch.optim.AdamW(self.params.values(), lr=0.05, weight_decay=0.1)
        self.schedule.start(self.params, STEPS, stage, previous)
        self.step = 0

    def advance(self, until: int = STEPS) -> None:
        while self.step < until:
            self.step += 1
            generator = torch.Generator().manual_seed(self.step)
            x = torch.randn(16, 8, generator=generator, dtype=torch.float64)
            self.adam.zero_grad()
            with self.schedule.forward_weights(self.params, self.step):
                for rows in x.split(8):  # two batches a step
                    ((self.model(rows) - rows[:, :2]).square().mean() / 2).backward()
            self.adam.step()
            if event := self.schedule.after_step(self.params, self.step):
                self.events.append(event)
            self.watch(self.params, self.step)
        if until == STEPS:
            self.schedule.finish(self.params, STEPS)

    def run(self) -> dict[str, Tensor]:
        self.advance()
        for stage in range(1, len(self.schedule.stages)):
            self.begin(stage, self.weights())
            self.advance()
        return self.weights()

    def weights(self) -> dict[str, Tensor]:
        return {name: param.detach().clone() for name, param in self.params.items()}


def _build(method: str, sparsity: float = 0.4, **options: Any) -> Schedule:
    return build_schedule(method, MethodOptions(sparsity=sparsity, prune_every=2, **options))


def _equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first | second)


@pytest.mark.parametrize("granularity", ["global", "layerwise"])
@pytest.mark.parametrize("method", PRUNING)
@given(sparsity=st.floats(0.0, 0.97), seed=st.integers(0, 99))
@settings(max_examples=8, deadline=None)
def test_final_sparsity_is_exact(method: str, granularity: str, sparsity: float, seed: int) -> None:
    schedule = _build(method, sparsity, granularity=granularity, seed=seed)
    weights = _Fit(schedule, seed).run()
    if granularity == "global":
        zeros, total = count_zeros(weights)
        assert zeros == round(sparsity * total)
    else:
        for name, weight in weights.items():
            assert count_zeros({name: weight})[0] == round(sparsity * weight.numel()), name


@pytest.mark.parametrize("method", SCHEDULES)
def test_tensors_out_of_scope_are_left_bit_identical(method: str) -> None:
    fit = _Fit(_build(method))
    fit.run()
    named = dict(fit.model.named_parameters())
    assert fit.outside
    assert all(torch.equal(named[name], before) for name, before in fit.outside.items())


@pytest.mark.parametrize("method", STATIC)
def test_static_methods_keep_pruned_weights_at_zero_through_momentum_and_decay(method: str) -> None:
    schedule = _build(method)
    fit = _Fit(schedule)
    held: list[bool] = []

    def look(params: dict[str, Tensor], step: int) -> None:
        held.extend(bool((params[n][~mask] == 0).all()) for n, mask in schedule.masks.items())

    fit.watch = look
    fit.run()
    assert held
    assert all(held)
    assert _equal(schedule.masks, schedule.first_masks)


@pytest.mark.parametrize("method", ADJUSTING)
def test_parp_family_lets_pruned_weights_move_and_return(method: str) -> None:
    schedule = _build(method)
    fit = _Fit(schedule)
    fit.advance(1)
    while measured_sparsity(schedule.masks) == 0.0:  # a method that begins dense
        fit.advance(fit.step + 1)
    before = fit.weights()
    fit.advance(fit.step + 1)
    moved = [bool((before[n] != fit.params[n])[~m].any()) for n, m in schedule.masks.items()]
    assert any(moved)
    fit.advance()
    assert sum(event.revived for event in fit.events) > 0


@pytest.mark.parametrize("growth", ["linear", "cubic"])
@given(target=st.floats(0.1, 0.95), start=st.floats(0.0, 1.0), until=st.floats(0.1, 1.0))
@settings(max_examples=25, deadline=None)
def test_progressive_sparsity_rises_monotonically_and_never_passes_its_target(
    growth: str, target: float, start: float, until: float
) -> None:
    options = MethodOptions(
        sparsity=target, start_sparsity=start * target, growth=growth, grow_until=until
    )
    schedule = build_schedule("parp-p", options)
    schedule.start({"w": nn.Parameter(torch.randn(50))}, 40)
    assert isinstance(schedule, PARP)
    risen = [schedule.sparsity_at(step) for step in range(41)]
    assert risen == sorted(risen)
    assert risen[0] == pytest.approx(start * target)
    assert risen[-1] == target


@given(target=st.floats(0.05, 0.95), seed=st.integers(0, 99))
@settings(max_examples=10, deadline=None)
def test_iterative_masks_are_nested_and_remove_a_tenth_of_the_original_each(
    target: float, seed: int
) -> None:
    schedule = _build("imp", target)
    fit = _Fit(schedule, seed)
    total = sum(param.numel() for param in fit.params.values())
    chain = [{name: torch.ones_like(p, dtype=torch.bool) for name, p in fit.params.items()}]
    for stage in range(1, len(schedule.stages)):
        fit.advance()
        fit.begin(stage, fit.weights())
        chain.append(schedule.masks)
    dropped = [round(measured_sparsity(masks) * total) for masks in chain]
    assert dropped[:-1] == [round(0.1 * k * total) for k in range(len(chain) - 1)]
    assert dropped[-1] == round(target * total)
    for looser, tighter in zip(chain, chain[1:], strict=False):
        assert all(not (tighter[name] & ~looser[name]).any() for name in looser)


@pytest.mark.parametrize("method", PRUNING)
@given(low=st.floats(0.0, 0.9), high=st.floats(0.0, 0.9))
@settings(max_examples=8, deadline=None)
def test_first_masks_are_nested_as_sparsity_rises(method: str, low: float, high: float) -> None:
    low, high = sorted((low, high))
    loose, tight = (_build(method, sparsity) for sparsity in (low, high))
    for schedule in (loose, tight):
        fit = _Fit(schedule)
        if not schedule.masks:  # the method's first stage is dense: what it would rank
            schedule.masks = schedule.rank(fit.params)
    assert all(not (tight.masks[n] & ~loose.masks[n]).any() for n in loose.masks)


@pytest.mark.parametrize("pattern", ["2:4", "1:4", "3:4"])
@pytest.mark.parametrize("method", PATTERNED)
def test_pattern_holds_in_every_group(method: str, pattern: str) -> None:
    kept, group = map(int, pattern.split(":"))
    weights = _Fit(_build(method, 1 - kept / group, pattern=pattern)).run()
    for name, weight in weights.items():
        assert ((weight.reshape(-1, group) != 0).sum(1) == kept).all(), name


@pytest.mark.parametrize("method", MANY_SPARSITIES)
def test_methods_of_many_sparsities_refuse_a_pattern(method: str) -> None:
    with pytest.raises(ValueError, match="has one sparsity and .* goes through several"):
        _build(method, 0.5, pattern="2:4")


@pytest.mark.parametrize("pattern", ["4:2", "2:4:8", "0:4", "half"])
def test_pattern_that_is_none_is_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match="unknown: give unstructured, or N:M"):
        MethodOptions(sparsity=0.5, pattern=pattern)


def test_pattern_of_another_sparsity_is_refused() -> None:
    with pytest.raises(ValueError, match=r"2:4 drops 0.5 of the weights, not 0.6"):
        MethodOptions(sparsity=0.6, pattern="2:4")


@pytest.mark.parametrize("stop", [1, 4, 8])
@pytest.mark.parametrize("method", SCHEDULES)
def test_resume_in_mid_stage_is_bit_equal(method: str, stop: int) -> None:
    whole = _Fit(_build(method))
    expected = whole.run()

    fit = _Fit(_build(method))
    for stage in range(len(fit.schedule.stages)):
        if stage:
            fit.begin(stage, fit.weights())
        fit.advance(stop)
        state, adam = fit.schedule.state_dict(), fit.adam.state_dict()
        fit.schedule = _build(method)
        fit.schedule.load_state_dict(state, fit.params)
        fit.adam.load_state_dict(adam)
        fit.advance()
    assert _equal(fit.weights(), expected)


@pytest.mark.parametrize("method", SCHEDULES)
def test_reprunes_are_at_the_steps_that_the_method_names(method: str) -> None:
    fit = _Fit(_build(method))
    pruned: list[int] = []
    fit.watch = lambda params, step: pruned.extend([step] * (len(fit.events) - len(pruned)))
    fit.advance()
    assert pruned == [step for step in range(1, STEPS + 1) if fit.schedule.prunes_at(step)]


@pytest.mark.parametrize("method", SCHEDULES)
def test_forward_pass_gives_the_weights_back_after_an_error(method: str) -> None:
    fit = _Fit(_build(method))
    fit.advance(4)
    before = fit.weights()
    with pytest.raises(RuntimeError), fit.schedule.forward_weights(fit.params, 5):
        raise RuntimeError
    assert _equal(fit.weights(), before)


class _CountOperations(TorchDispatchMode):
    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("method", [name for name in SCHEDULES if name != "parp-latent"])
def test_forward_pass_at_the_weights_themselves_costs_no_operation(method: str) -> None:
    fit = _Fit(_build(method))
    fit.advance(4)
    with _CountOperations() as operations, fit.schedule.forward_weights(fit.params, 5):
        pass
    assert operations.count == 0


@pytest.mark.parametrize("method", SCHEDULES)
def test_scoring_leaves_the_weights_in_training_as_they_are(method: str) -> None:
    fit = _Fit(_build(method))
    fit.advance(3)
    before = fit.weights()
    with fit.schedule.pruned(fit.params) as snapshot:
        if snapshot.masks:
            assert _equal(snapshot.masks, {n: p != 0 for n, p in fit.params.items()})
    assert _equal(fit.weights(), before)


@pytest.mark.parametrize("method", ADJUSTING)
def test_scored_model_has_the_target_sparsity_at_any_step(method: str) -> None:
    fit = _Fit(_build(method, 0.6))
    for step in range(1, STEPS):
        fit.advance(step)
        with fit.schedule.pruned(fit.params):
            assert measured_sparsity(fit.params) == pytest.approx(0.6, abs=0.005)


@pytest.mark.parametrize("method", PRUNING)
def test_without_a_step_the_initial_weights_are_pruned_to_the_target(method: str) -> None:
    schedule = _build(method, 0.4)
    fit = _Fit(schedule)
    torch.manual_seed(fit.seed)
    initial = dict(nn.Linear(8, 12).double().named_parameters())["weight"]
    previous = None
    for stage in range(len(schedule.stages)):
        torch.manual_seed(fit.seed)
        fresh = nn.Linear(8, 12).double()
        params = dict(fresh.named_parameters())
        schedule.start(params, schedule.stage_steps(stage, 0), stage, previous)
        schedule.finish(params, 0)
        with schedule.pruned(params):
            previous = {name: param.detach().clone() for name, param in params.items()}
    assert previous is not None
    kept = previous["weight"] != 0
    dropped = sum(int((weight == 0).sum()) for weight in previous.values())
    assert dropped == round(0.4 * sum(weight.numel() for weight in previous.values()))
    assert torch.equal(previous["weight"][kept], initial[kept])


@pytest.mark.parametrize("method", SCHEDULES)
def test_parameter_objects_stay_for_the_optimizer(method: str) -> None:
    fit = _Fit(_build(method))
    before = {name: id(param) for name, param in fit.params.items()}
    fit.advance()
    assert {name: id(param) for name, param in fit.params.items()} == before
    assert all(param.requires_grad for param in fit.params.values())


@pytest.mark.parametrize("method", PRUNING)
def test_sparsity_zero_trains_the_dense_model_bit_for_bit(method: str) -> None:
    assert _equal(_Fit(_build(method, 0.0)).run(), _Fit(_build("dense", 0.0)).run())
