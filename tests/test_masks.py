"""Masks against hand-made examples, properties, sorting, and torch.nn.utils.prune."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import prune

from pruning import masks as masks_module
from pruning.masks import (
    Overlap,
    apply_masks,
    count_zeros,
    largest_dropped,
    magnitude_masks,
    mask_iou,
    mask_overlap,
    measured_sparsity,
    random_masks,
)
from pruning.scope import select_parameters
from tests.weights import (
    dtypes,
    flat,
    param_dicts,
    sparsities,
    tensors,
    w2v2_params,
    whisper_params,
)

NINE = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]


def masks_by_sorting(params: dict, sparsity: float) -> Tensor:
    """Drop the first of a stable sort, the definition that the histograms have to meet."""
    magnitudes = flat(params).double().abs()
    order = magnitudes.sort(stable=True).indices
    kept = torch.ones(len(magnitudes), dtype=torch.bool)
    kept[order[: round(sparsity * len(magnitudes))]] = False
    return kept


def masks_of_torch(params: dict, sparsity: float) -> dict:
    modules = {}
    for name, weight in params.items():
        modules[name] = nn.Module()
        modules[name].weight = nn.Parameter(weight.clone())
    pairs = [(module, "weight") for module in modules.values()]
    prune.global_unstructured(pairs, prune.L1Unstructured, amount=sparsity)
    return {name: module.weight_mask.bool() for name, module in modules.items()}


def assert_equal_up_to_ties(ours: Tensor, theirs: Tensor, magnitudes: Tensor) -> None:
    """Which of the weights equal to the threshold is dropped, torch leaves open."""
    assert ours.count_nonzero() == theirs.count_nonzero()
    differing = magnitudes[ours != theirs]
    if differing.numel():
        assert (differing == magnitudes[~ours].max()).all()


def test_magnitude_masks_on_hand_example_match() -> None:
    params = tensors({"a": [3.0, -1.0, 0.25], "b": [-2.0, 0.5]})
    masks = magnitude_masks(params, 0.6)
    assert {name: mask.tolist() for name, mask in masks.items()} == {
        "a": [True, False, False],
        "b": [True, False],
    }


def test_magnitude_masks_layerwise_rank_each_tensor_alone() -> None:
    params = tensors({"a": [30.0, 10.0, 20.0, 40.0], "b": [-2.0, 0.5]})
    masks = magnitude_masks(params, 0.5, "layerwise")
    assert masks["a"].tolist() == [True, False, False, True]
    assert masks["b"].tolist() == [True, False]


def test_magnitude_masks_with_ties_drop_first_by_name_then_index() -> None:
    params = tensors({"b": [1.0, -1.0, 1.0], "a": [[5.0, -1.0], [1.0, 1.0]]})
    masks = magnitude_masks(params, 4 / 7)
    assert masks["a"].tolist() == [[True, False], [False, False]]
    assert masks["b"].tolist() == [False, True, True]


@pytest.mark.parametrize(
    ("sparsity", "num_weights", "dropped"), [(0.5, 5, 2), (0.5, 7, 4), (0.9, 1, 1), (0.3, 1, 0)]
)
def test_magnitude_masks_count_is_pythons_round(
    sparsity: float, num_weights: int, dropped: int
) -> None:
    params = {"w": torch.rand(num_weights)}
    assert (~magnitude_masks(params, sparsity)["w"]).sum() == dropped


@given(param_dicts, sparsities, dtypes)
def test_magnitude_masks_equal_stable_sort(
    params: dict, sparsity: float, dtype: torch.dtype
) -> None:
    weights = tensors(params, dtype)
    assert torch.equal(
        flat(magnitude_masks(weights, sparsity)), masks_by_sorting(weights, sparsity)
    )


def test_magnitude_masks_rank_float64_in_full_precision() -> None:
    params = {"a": torch.tensor([1.0]), "b": torch.tensor([1.0 - 1e-12], dtype=torch.float64)}
    masks = magnitude_masks(params, 0.5)
    assert (masks["a"].item(), masks["b"].item()) == (True, False)


@given(param_dicts, sparsities)
def test_magnitude_masks_drop_exact_count(params: dict, sparsity: float) -> None:
    kept = flat(magnitude_masks(tensors(params), sparsity))
    assert (~kept).sum() == round(sparsity * len(kept))


@given(param_dicts, sparsities, sparsities)
def test_magnitude_masks_nest_as_sparsity_rises(params: dict, first: float, second: float) -> None:
    weights = tensors(params)
    low = flat(magnitude_masks(weights, min(first, second)))
    high = flat(magnitude_masks(weights, max(first, second)))
    assert not (high & ~low).any()


@given(param_dicts, sparsities)
def test_magnitude_masks_keep_no_weight_below_a_dropped_one(params: dict, sparsity: float) -> None:
    weights = tensors(params)
    kept, magnitudes = flat(magnitude_masks(weights, sparsity)), flat(weights).abs()
    if kept.any() and not kept.all():
        assert magnitudes[kept].min() >= magnitudes[~kept].max()


@given(param_dicts, sparsities)
def test_largest_dropped_is_maximum_of_dropped(params: dict, sparsity: float) -> None:
    weights = tensors(params)
    masks = magnitude_masks(weights, sparsity)
    dropped = flat(weights).abs()[~flat(masks)]
    assert largest_dropped(weights, masks) == (dropped.max().item() if len(dropped) else 0.0)


@settings(max_examples=30)
@given(st.integers(1, 7), st.integers(0, 2**31), sparsities)
def test_magnitude_masks_do_not_depend_on_chunks(chunk: int, seed: int, sparsity: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    weights = {"w": torch.randint(-4, 5, (50,), generator=generator).float()}
    whole = magnitude_masks(weights, sparsity)["w"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(masks_module, "CHUNK", chunk)
        assert torch.equal(magnitude_masks(weights, sparsity)["w"], whole)


def test_magnitude_masks_of_strided_weight_follow_its_shape() -> None:
    weight = torch.randn(5, 7)
    expected = magnitude_masks({"w": weight.clone()}, 0.4)["w"]
    strided = weight.T.contiguous().T
    assert torch.equal(magnitude_masks({"w": strided}, 0.4)["w"], expected)


def test_magnitude_masks_leave_parameters_alone() -> None:
    weight = nn.Parameter(torch.randn(6))
    before = weight.detach().clone()
    mask = magnitude_masks({"w": weight}, 0.5)["w"]
    assert torch.equal(weight.detach(), before)
    assert not mask.requires_grad


def test_magnitude_masks_skip_empty_tensor_beside_others() -> None:
    masks = magnitude_masks({"a": torch.zeros(0, 3), "b": torch.tensor([1.0, 2.0])}, 0.5)
    assert masks["a"].shape == (0, 3)
    assert masks["b"].tolist() == [False, True]


@pytest.mark.parametrize("sparsity", [-0.1, 1.0, 60, float("nan")])
def test_magnitude_masks_sparsity_outside_range_is_refused(sparsity: float) -> None:
    match = rf"sparsity is {sparsity}: give a fraction in \[0, 1\), not a percentage"
    with pytest.raises(ValueError, match=match):
        magnitude_masks({"w": torch.ones(3)}, sparsity)


@pytest.mark.parametrize("sparsity", [0.0, 0.5])
def test_magnitude_masks_nan_is_refused(sparsity: float) -> None:
    with pytest.raises(ValueError, match="w holds a NaN"):
        magnitude_masks({"v": torch.ones(2), "w": torch.tensor([1.0, float("nan")])}, sparsity)


@pytest.mark.parametrize("params", [{}, {"w": torch.zeros(0)}])
def test_magnitude_masks_without_weights_are_refused(params: dict) -> None:
    with pytest.raises(ValueError, match="no weights to prune"):
        magnitude_masks(params, 0.5)


def test_magnitude_masks_integers_are_refused() -> None:
    with pytest.raises(ValueError, match="only floating tensors"):
        magnitude_masks({"w": torch.ones(3, dtype=torch.int32)}, 0.5)


def test_magnitude_masks_unknown_granularity_is_refused() -> None:
    with pytest.raises(ValueError, match="'local': choose 'global' or 'layerwise'"):
        magnitude_masks({"w": torch.ones(3)}, 0.5, "local")  # type: ignore[arg-type]


@pytest.mark.parametrize("sparsity", NINE)
def test_magnitude_masks_without_ties_equal_torch_prune(sparsity: float) -> None:
    values = (torch.randperm(600) + 1) * torch.tensor([1.0, -1.0]).repeat(300)
    params = {"a": values[:400].reshape(20, 20), "b": values[400:]}
    ours, theirs = magnitude_masks(params, sparsity), masks_of_torch(params, sparsity)
    assert all(torch.equal(ours[name], theirs[name]) for name in params)


@pytest.mark.long
def test_magnitude_masks_equal_torch_prune_at_whisper_tiny_size() -> None:
    params = whisper_params()
    magnitudes = flat(params).abs()
    assert len(magnitudes) == 16_544_256
    for sparsity in NINE:
        ours, theirs = magnitude_masks(params, sparsity), masks_of_torch(params, sparsity)
        assert_equal_up_to_ties(flat(ours), flat(theirs), magnitudes)


@pytest.mark.long
def test_magnitude_masks_equal_sorting_at_wav2vec2_base_size() -> None:
    params = w2v2_params()
    magnitudes = flat(params).abs().numpy()
    assert len(magnitudes) == 85_017_600
    ascending = np.sort(magnitudes)
    for sparsity in NINE:
        num_dropped = round(sparsity * len(magnitudes))
        cut = ascending[num_dropped - 1]
        expected = magnitudes > cut
        ties = (magnitudes == cut).nonzero()[0]
        expected[ties[num_dropped - np.searchsorted(ascending, cut) :]] = True
        assert np.array_equal(flat(magnitude_masks(params, sparsity)).numpy(), expected)


@pytest.mark.long
def test_magnitude_masks_equal_torch_prune_at_wav2vec2_base_size() -> None:
    params = w2v2_params()  # one sparsity only: torch takes 18 to 40 s for each
    ours, theirs = magnitude_masks(params, 0.6), masks_of_torch(params, 0.6)
    assert_equal_up_to_ties(flat(ours), flat(theirs), flat(params).abs())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_apply_masks_leave_positive_zero_and_every_kept_bit(dtype: torch.dtype) -> None:
    inf, nan = float("inf"), float("nan")
    weight = torch.tensor([-1.5, -0.0, inf, nan, -1.5, -0.0, inf, nan], dtype=dtype)
    apply_masks({"w": weight}, {"w": torch.arange(8) < 4})
    assert weight.signbit().tolist() == [True, True, False, False] + [False] * 4
    assert weight.tolist()[:3] == [-1.5, 0.0, inf]
    assert weight[3].isnan()
    assert weight[4:].tolist() == [0.0] * 4


def test_apply_masks_change_the_leaf_parameter_in_place() -> None:
    layer = nn.Linear(3, 2)
    params = dict(layer.named_parameters())
    apply_masks(params, {"weight": torch.zeros(2, 3, dtype=torch.bool)})
    assert count_zeros({"weight": layer.weight}) == (6, 6)
    assert layer.weight.requires_grad
    assert layer.bias.count_nonzero() == 2


def test_apply_masks_on_strided_parameter_write_through() -> None:
    base = torch.ones(3, 4)
    apply_masks({"w": base.T}, {"w": torch.tensor([[True, False, True]]).expand(4, 3)})
    assert base.tolist() == [[1.0] * 4, [0.0] * 4, [1.0] * 4]


def test_apply_masks_of_unknown_parameter_change_nothing() -> None:
    weight, dropped = torch.ones(2), torch.tensor([False, False])
    with pytest.raises(ValueError, match="'v' is on one side only"):
        apply_masks({"w": weight}, {"w": dropped, "v": dropped})
    assert weight.tolist() == [1.0, 1.0]


def test_apply_masks_of_other_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"'w' is \(1,\) and \(2,\)"):
        apply_masks({"w": torch.ones(2)}, {"w": torch.tensor([False])})


def test_measured_sparsity_counts_both_zeros() -> None:
    params = tensors({"a": [0.0, -0.0, 1e-41], "b": [2.0]})
    assert count_zeros(params) == (2, 4)
    assert measured_sparsity(params) == 0.5
    assert measured_sparsity({}) == 0.0


def test_applied_masks_give_the_sparsity_asked_for() -> None:
    params = {"w": torch.randn(100, 10)}
    apply_masks(params, magnitude_masks(params, 0.37))
    assert count_zeros(params) == (370, 1000)


def test_mask_iou_on_hand_example_is_pooled() -> None:
    first = {"a": torch.tensor([True, True, False]), "b": torch.tensor([True])}
    second = {"a": torch.tensor([True, False, False]), "b": torch.tensor([True])}
    assert mask_iou(first, second) == 2 / 3


@given(param_dicts, sparsities, sparsities)
def test_mask_iou_is_symmetric_and_one_on_itself(params: dict, one: float, other: float) -> None:
    first, second = (magnitude_masks(tensors(params), s) for s in (one, other))
    assert mask_iou(first, first) == 1.0
    assert mask_iou(first, second) == mask_iou(second, first)


def test_mask_iou_of_other_names_is_refused() -> None:
    mask = torch.tensor([True])
    with pytest.raises(ValueError, match="'b' is on one side only"):
        mask_iou({"a": mask}, {"a": mask, "b": mask})


def test_mask_overlap_counts_what_both_and_each_alone_keep() -> None:
    first = {"v": torch.ones(2, 0, dtype=torch.bool), "w": torch.tensor([True, True, True, False])}
    second = {"w": torch.tensor([False, False, True, True]), "v": first["v"]}
    assert mask_overlap(first, second) == Overlap(both=1, first_only=2, second_only=1)
    assert mask_overlap({}, {}).iou == 1.0


def test_select_parameters_matches_full_names_only() -> None:
    params = {name: torch.ones(1) for name in ("head.weight", "fc1.weight", "fc1.weight_scale")}
    selected = select_parameters(params, r"fc\d\.weight")
    assert list(selected) == ["fc1.weight"]
    assert selected["fc1.weight"] is params["fc1.weight"]


@pytest.mark.parametrize(
    ("pattern", "match"),
    [("fc2", "'fc2' matches none of the 1"), ("(", "not a regular expression")],
)
def test_select_parameters_without_match_is_refused(pattern: str, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        select_parameters({"fc1": torch.ones(1)}, pattern)


@pytest.mark.parametrize("pattern", ["1:4", "2:4", "3:8"])
def test_pattern_masks_equal_a_sort_of_every_group(pattern: str) -> None:
    kept, group = map(int, pattern.split(":"))
    params = {"u": torch.randn(6, 16), "v": torch.randn(3, 5, 8).round()}
    masks = magnitude_masks(params, 1 - kept / group, pattern=pattern)
    for name, weight in params.items():
        rows = weight.reshape(-1, group).abs().tolist()
        for row, mask in zip(rows, masks[name].reshape(-1, group).tolist(), strict=True):
            order = sorted(range(group), key=lambda i: (row[i], i))  # ties: the first is dropped
            assert [i for i in range(group) if not mask[i]] == sorted(order[: group - kept])


def test_pattern_that_fits_no_whole_groups_names_the_tensor() -> None:
    with pytest.raises(ValueError, match=r"w of shape \(2, 6\) has no whole groups of 4"):
        magnitude_masks({"w": torch.randn(2, 6)}, 0.5, pattern="2:4")


def test_random_masks_are_exact_and_uniform() -> None:
    params = {"u": torch.randn(200, 200), "v": torch.randn(100)}
    masks = random_masks(params, 0.7, seed=3)
    dropped = sum(int((~mask).sum()) for mask in masks.values())
    assert dropped == round(0.7 * 40_100)
    rows = masks["u"].float().mean(1)  # 200 draws of 200: a standard deviation of 0.032
    assert rows.mean() == pytest.approx(0.3, abs=0.01)
    assert rows.std() == pytest.approx(0.0324, abs=0.006)


def test_random_masks_depend_on_the_seed_and_not_on_values_or_order() -> None:
    params = {"u": torch.randn(20, 20), "v": torch.randn(30)}
    masks = random_masks(params, 0.5, seed=1)
    others = {name: torch.zeros_like(params[name]) for name in ("v", "u")}
    again, other = random_masks(others, 0.5, seed=1), random_masks(params, 0.5, seed=2)
    assert all(torch.equal(masks[name], again[name]) for name in params)
    assert not torch.equal(masks["u"], other["u"])


def test_random_masks_of_two_seeds_overlap_as_independent_ones() -> None:
    params = {"u": torch.randn(300, 300)}
    first, second = (random_masks(params, 0.7, seed=seed) for seed in (1, 2))
    assert mask_iou(first, second) == pytest.approx(0.3 / 1.7, abs=0.01)
