"""Weights to prune: few and strange, or as many as the real models have."""

import torch
from hypothesis import strategies as st
from torch import Tensor

# Few distinct values, so that ties are common; both zeros, infinity and a denormal among them.
weight_values = st.sampled_from([0.0, -0.0, 0.5, -0.5, 1.0, -1.0, 2.5, 1e-41, float("inf")])
weight_lists = st.lists(
    st.one_of(weight_values, st.floats(allow_nan=False, width=32)), min_size=1, max_size=40
)
param_dicts = st.dictionaries(st.sampled_from("abcde"), weight_lists, min_size=1)
dtypes = st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64])
sparsities = st.floats(0, 1, exclude_max=True)


def tensors(params: dict, dtype: torch.dtype = torch.float32) -> dict:
    return {name: torch.tensor(values, dtype=dtype) for name, values in params.items()}


def flat(params: dict) -> Tensor:
    return torch.cat([params[name].detach().reshape(-1) for name in sorted(params)])


def w2v2_params() -> dict:
    shapes = {}
    for i in range(12):
        for leaf in ("q", "k", "v", "out"):
            shapes[f"{i}.{leaf}.weight"], shapes[f"{i}.{leaf}.bias"] = (768, 768), (768,)
        shapes[f"{i}.fc1.weight"], shapes[f"{i}.fc1.bias"] = (3072, 768), (3072,)
        shapes[f"{i}.fc2.weight"], shapes[f"{i}.fc2.bias"] = (768, 3072), (768,)
    return {name: torch.randn(shape) * 0.05 for name, shape in shapes.items()}


def whisper_params() -> dict:
    shapes = {}
    blocks = [(f"e{i}", ("self",)) for i in range(4)]
    blocks += [(f"d{i}", ("self", "cross")) for i in range(4)]
    for block, attentions in blocks:
        for attention in attentions:
            for leaf in ("q", "k", "v", "out"):
                shapes[f"{block}.{attention}.{leaf}.weight"] = (384, 384)
                if leaf != "k":
                    shapes[f"{block}.{attention}.{leaf}.bias"] = (384,)
        shapes[f"{block}.fc1.weight"], shapes[f"{block}.fc1.bias"] = (1536, 384), (1536,)
        shapes[f"{block}.fc2.weight"], shapes[f"{block}.fc2.bias"] = (384, 1536), (384,)
    return {name: torch.randn(shape) * 0.05 for name, shape in shapes.items()}
