"""Projections of linear layers, against brute force in float64."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import train
from models.checkpoint import load_checkpoint
from pruning import projection
from pruning.interface import Schedule
from pruning.masks import count_zeros
from pruning.projection import input_second_moments, obs_mask, project, refit_rows
from pruning.schedules import SCHEDULES, MethodOptions, build_schedule

PROJECTING = [name for name in SCHEDULES if SCHEDULES[name].projects]


def _layer(seed: int, rows: int = 6, columns: int = 9) -> tuple[Tensor, Tensor, Tensor]:
    """Return a weight, inputs (N, C) that depend on one another, and a mask of uneven rows."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    inputs = draw(40, columns) @ draw(columns, columns) + draw(columns)
    mask = torch.rand(rows, columns, generator=generator) > 0.5
    mask[0], mask[1] = False, True
    return draw(rows, columns), inputs, mask


def _moments(inputs: Tensor) -> Tensor:
    return inputs.T @ inputs / len(inputs)


def _least_squares(weight: Tensor, inputs: Tensor, mask: Tensor, damping: float) -> Tensor:
    """Solve for each row by orthogonal factors of the inputs themselves, damping as more inputs."""
    scale = (damping * inputs.square().mean() * len(inputs)).sqrt()
    extended = torch.cat([inputs, scale * torch.eye(inputs.shape[1], dtype=torch.float64)])
    fitted = torch.zeros_like(weight)
    for row, kept in enumerate(mask):
        if kept.any():
            wanted = extended @ weight[row, :, None]
            fitted[row, kept] = torch.linalg.lstsq(extended[:, kept], wanted).solution[:, 0]
    return fitted


@pytest.mark.parametrize("damping", [1e-3, 0.5])
@pytest.mark.parametrize("seed", range(3))
def test_refit_is_the_least_squares_solution_of_every_row(seed: int, damping: float) -> None:
    weight, inputs, mask = _layer(seed)
    fitted = refit_rows(weight, _moments(inputs), mask, damping)
    torch.testing.assert_close(
        fitted, _least_squares(weight, inputs, mask, damping), rtol=1e-8, atol=1e-10
    )
    assert not fitted[~mask].any()


def test_refit_does_not_depend_on_how_many_rows_are_solved_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    weight, inputs, mask = _layer(0)
    together = refit_rows(weight, _moments(inputs), mask)
    monkeypatch.setattr(projection, "LARGEST_SYSTEMS", 1)
    one_by_one = refit_rows(weight, _moments(inputs), mask)
    torch.testing.assert_close(one_by_one, together, rtol=1e-12, atol=0.0)


def test_refit_leaves_a_row_that_keeps_everything_as_it_is() -> None:
    weight, inputs, mask = _layer(0)
    fitted = refit_rows(weight, _moments(inputs), mask, damping=0.3)
    torch.testing.assert_close(fitted[1], weight[1], rtol=1e-12, atol=0.0)


def test_refit_without_any_input_keeps_the_values() -> None:
    weight, _, mask = _layer(0)
    fitted = refit_rows(weight, torch.zeros(9, 9), mask)
    torch.testing.assert_close(fitted, weight * mask, rtol=1e-12, atol=0.0)


def _obs_by_inverses(weight: Tensor, moments: Tensor, dropped: int, damping: float) -> Tensor:
    """Do as SparseGPT in blocks of 4 columns, each time inverting what is left of the Hessian."""
    hessian = moments + damping * moments.diagonal().mean() * torch.eye(len(moments))
    left, (rows, columns) = weight.clone(), weight.shape
    mask = torch.ones(rows, columns, dtype=torch.bool)
    inverses = [torch.linalg.inv(hessian[j:, j:]) for j in range(columns)]
    for start in range(0, columns, 4):
        end = min(start + 4, columns)
        count = dropped * end // columns - dropped * start // columns
        scores = {
            (i, j): float(left[i, j] ** 2 / inverses[j][0, 0])
            for i in range(rows)
            for j in range(start, end)
        }
        for place in sorted(scores, key=lambda place: scores[place])[:count]:
            mask[place] = False
        for j in range(start, end):
            for i in range(rows):
                if not mask[i, j]:
                    left[i, j:] -= left[i, j] / inverses[j][0, 0] * inverses[j][0]
    return mask


@pytest.mark.parametrize("seed", range(5))
def test_obs_chooses_what_inverting_the_rest_of_the_hessian_chooses(seed: int) -> None:
    weight, inputs, _ = _layer(seed, rows=5, columns=10)
    moments = _moments(inputs)
    mask = obs_mask(weight, moments, 23, damping=0.05, block_size=4)
    assert torch.equal(mask, _obs_by_inverses(weight, moments, 23, 0.05))


@given(dropped=st.integers(0, 54), block_size=st.integers(1, 12), seed=st.integers(0, 9))
@settings(max_examples=30, deadline=None)
def test_obs_drops_the_exact_count(dropped: int, block_size: int, seed: int) -> None:
    weight, inputs, _ = _layer(seed)
    mask = obs_mask(weight, _moments(inputs), dropped, block_size=block_size)
    assert int((~mask).sum()) == dropped


def test_obs_of_unrelated_inputs_of_one_size_is_magnitude_pruning() -> None:
    weight, _, _ = _layer(0)
    mask = obs_mask(weight, torch.eye(9, dtype=torch.float64), 30)
    assert weight[mask].abs().min() > weight[~mask].abs().max()


def test_refit_halves_what_zeroing_changes_and_obs_halves_that_again() -> None:
    """On inputs as layers have them: a few strong directions, and sizes of their own."""
    generator = torch.Generator().manual_seed(0)
    inputs, mixing, sizes, weight = (
        torch.randn(shape, generator=generator, dtype=torch.float64)
        for shape in ((400, 6), (6, 64), (64,), (48, 64))
    )
    noise = torch.randn(400, 64, generator=generator, dtype=torch.float64)
    inputs = (inputs @ mixing + 0.5 * noise) * sizes.exp()
    masks = {"w": weight.abs() >= weight.abs().flatten().quantile(0.6)}
    found = [weight * masks["w"]]
    for chooses in (False, True):
        params = {"w": weight.clone()}
        chosen = project(params, masks, {"w": _moments(inputs)}, chooses)
        assert torch.equal(params["w"] != 0, chosen["w"])
        assert chosen["w"].sum() == masks["w"].sum()
        found.append(params["w"])
    zeroed, refitted, obs = (float((inputs @ (kept - weight).T).square().mean()) for kept in found)
    assert obs < 0.5 * refitted < 0.5 * 0.5 * zeroed


def test_projection_leaves_vectors_and_whole_layers_alone() -> None:
    weight, inputs, mask = _layer(0)
    params = {"a.weight": weight.clone(), "b.weight": weight.clone(), "b.bias": torch.ones(3)}
    masks = {
        "a.weight": torch.ones_like(mask),
        "b.weight": mask,
        "b.bias": torch.tensor([True, False, True]),
    }
    chosen = project(params, masks, {"b.weight": _moments(inputs)}, chooses=True)
    assert torch.equal(params["a.weight"], weight)
    assert params["b.bias"].tolist() == [1.0, 1.0, 1.0]
    assert torch.equal(chosen["b.bias"], masks["b.bias"])


def test_weight_without_inputs_is_refused_by_name() -> None:
    weight, _, mask = _layer(0)
    with pytest.raises(ValueError, match=r"no inputs of conv.weight were seen"):
        project({"conv.weight": weight}, {"conv.weight": mask}, {}, chooses=False)


def _model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).double()


def test_inputs_are_collected_over_all_positions_and_batches() -> None:
    model = _model()
    batches = [torch.randn(2, 4, 5, dtype=torch.float64), torch.randn(6, 5, dtype=torch.float64)]

    def run() -> None:
        for batch in batches:
            model(batch)

    moments = input_second_moments(model, ["0.weight", "0.bias", "2.weight"], run)
    rows = torch.cat([batch.flatten(0, -2) for batch in batches])
    torch.testing.assert_close(moments["0.weight"], _moments(rows))
    torch.testing.assert_close(moments["2.weight"], _moments(model[0](rows).tanh()))  # type: ignore
    assert moments.keys() == {"0.weight", "2.weight"}


def test_layers_that_were_not_run_have_no_moments_and_hooks_are_gone() -> None:
    model = _model()
    assert input_second_moments(model, ["0.weight"], lambda: None) == {}

    def fail() -> None:
        raise RuntimeError

    with pytest.raises(RuntimeError):
        input_second_moments(model, ["0.weight"], fail)
    assert not any(layer._forward_pre_hooks for layer in model.modules())


def test_inputs_of_processes_are_added_up() -> None:
    model = _model()
    rows = torch.randn(6, 5, dtype=torch.float64)

    def add_up(tensors: Any) -> None:  # as if another process had seen the same again, and nothing
        for tensor in tensors:
            tensor *= 2

    moments = input_second_moments(model, ["0.weight"], lambda: model(rows), add_up)
    torch.testing.assert_close(moments["0.weight"], _moments(rows))


class _Fit:
    """A run of a method on two layers, without any training: what its projection does is left."""

    def __init__(self, schedule: Schedule, steps: int = 6) -> None:
        self.model = _model()
        self.rows = torch.randn(30, 5, dtype=torch.float64)
        self.params: dict[str, Tensor] = dict(self.model.named_parameters())
        self.dense = {name: param.detach().clone() for name, param in self.params.items()}
        self.calls = 0
        schedule.collect_inputs = self.collect
        schedule.start(self.params, steps)
        for step in range(1, steps + 1):
            schedule.after_step(self.params, step)
        schedule.finish(self.params, steps)

    @torch.no_grad()
    def collect(self) -> dict[str, Tensor]:
        self.calls += 1
        self.seen = {name: param.clone() for name, param in self.params.items()}
        return input_second_moments(self.model, self.params, lambda: self.model(self.rows))


@pytest.mark.parametrize("kind", ["refit", "obs"])
@pytest.mark.parametrize("method", PROJECTING)
def test_method_projects_once_at_its_last_prune(method: str, kind: str) -> None:
    schedule = build_schedule(method, MethodOptions(sparsity=0.5, prune_every=2, projection=kind))
    fit = _Fit(schedule)
    assert fit.calls == 1
    dropped, total = count_zeros(fit.params)
    assert dropped == round(0.5 * total)
    for name, mask in schedule.masks.items():
        assert torch.equal(fit.params[name] != 0, mask)
        if name.endswith("weight"):
            assert not torch.equal(fit.params[name], fit.seen[name] * mask)


def test_latent_values_play_no_part_in_what_is_fitted() -> None:
    options = MethodOptions(sparsity=0.5, prune_every=2, projection="refit", cooldown=0.5)
    schedule = build_schedule("parp-latent", options)
    fit = _Fit(schedule)
    for name, mask in schedule.masks.items():  # nothing trained, so the masks are the first ones
        assert torch.equal(fit.seen[name], fit.dense[name] * mask)


@pytest.mark.parametrize("method", ["dense", "rp", "omp", "imp", "parp-mask"])
def test_methods_without_a_last_prune_of_trained_weights_refuse_a_projection(method: str) -> None:
    with pytest.raises(ValueError, match=f"--projection is not for {method}: use it with mpi"):
        build_schedule(method, MethodOptions(sparsity=0.5, projection="obs"))


def test_projection_without_inputs_is_refused() -> None:
    schedule = build_schedule("mpi", MethodOptions(sparsity=0.5, projection="obs"))
    with pytest.raises(ValueError, match="projection obs needs the inputs of layers"):
        schedule.start(dict(_model().named_parameters()), 5)


def test_obs_with_a_pattern_or_a_held_mask_of_another_run_is_refused() -> None:
    with pytest.raises(ValueError, match="projection obs keeps no pattern 2:4: give refit"):
        MethodOptions(sparsity=0.5, pattern="2:4", projection="obs")
    with pytest.raises(ValueError, match="mpi holds --init-mask and projection obs changes it"):
        build_schedule("mpi", MethodOptions(sparsity=0.5, init_mask="m.pt", projection="obs"))


def _run(corpus: Path, out: Path, *flags: str) -> int:
    common = "--model w2v2-demo --sparsity 0.5 --steps 4 --prune-every 2 --eval-every 4 --lr 1e-2"
    where = ["--data", str(corpus), "--out", str(out), "--device", "cpu", "--log-every", "1"]
    return train.main([*common.split(), *where, "--batch-seconds", "4", *flags])


def _logged(out: Path, event: str) -> list[str]:
    lines = (out / "metrics.jsonl").read_text().splitlines()
    return [line.split('"seconds"')[0] for line in lines if f'"event": "{event}"' in line]


@pytest.mark.long
def test_training_run_projects_at_its_last_prune_and_draws_nothing_for_it(
    small_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    collect_inputs = train.collect_inputs
    collected = []

    def watch(run: train.Run) -> dict[str, Tensor]:
        state = torch.get_rng_state()
        moments = collect_inputs(run)
        assert torch.equal(torch.get_rng_state(), state)
        assert run.checkpoint.model.training
        collected.append(run.step)
        return moments

    monkeypatch.setattr(train, "collect_inputs", watch)
    for kind in ("none", "refit"):
        assert _run(small_corpus, tmp_path / kind, "--method", "parp", "--projection", kind) == 0
    assert collected == [4]
    logged = [_logged(tmp_path / kind, "train") for kind in ("none", "refit")]
    assert logged[0] == logged[1]
    models = [load_checkpoint(tmp_path / kind / "last.pt") for kind in ("none", "refit")]
    weights = [dict(checkpoint.model.named_parameters()) for checkpoint in models]
    for name, mask in models[0].masks.items():
        assert torch.equal(mask, models[1].masks[name])
        changed = not torch.equal(weights[0][name], weights[1][name])
        assert changed == (mask.dim() == 2)


@pytest.mark.long
def test_static_method_projects_the_initial_weights(small_corpus: Path, tmp_path: Path) -> None:
    for kind in ("none", "obs"):
        assert _run(small_corpus, tmp_path / kind, "--method", "mpi", "--projection", kind) == 0
    masks = [load_checkpoint(tmp_path / kind / "best.pt").masks for kind in ("none", "obs")]
    assert not all(torch.equal(masks[0][name], masks[1][name]) for name in masks[0])
    for name in masks[0]:
        assert masks[0][name].sum() == masks[1][name].sum()
