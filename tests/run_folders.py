"""Finished run folders as train.py leaves them, made up."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pruning.mask_file import save_masks

ROLES = (
    *(f"self_attn.{name}_proj.{kind}" for name in "qkv" for kind in ("weight", "bias")),
    *(f"ffn.{name}.{kind}" for name in ("fc1", "fc2") for kind in ("weight", "bias")),
)
STATIC = ("dense", "rp", "mpi", "omp", "imp")


def omp_argv(corpus: Path, out: Path, *flags: str) -> list[str]:
    """Return arguments of train.py for a short run of two stages."""
    common = ["--data", str(corpus), "--out", str(out), "--steps", "2", "--log-every", "1"]
    pruned = ["--method", "omp", "--sparsity", "0.5", "--batch-seconds", "4", "--eval-every", "1"]
    return ["--model", "w2v2-demo", "--device", "cpu", *common, *pruned, *flags]


def write_run(
    folder: Path,
    method: str = "parp",
    sparsity: float = 0.5,
    lr: float = 1e-4,
    seed: int = 0,
    rate: float = 0.2,
    dev_rate: float = 0.2,
    operations: list[str] | None = None,
    layers: int = 2,
    **options: Any,
) -> Path:
    """Write a finished run; ``rate`` is roughly its test error unless ``operations`` are given."""
    folder.mkdir(parents=True)
    target = options.get("target", "phone")
    sparsity = 0.0 if method == "dense" else sparsity
    generator = np.random.default_rng([seed, len(method), round(1000 * rate)])
    if operations is None:
        tokens = ["=", "S", "D", "=I"]
        shares = [1 - rate, rate / 2, rate / 3, rate / 6]
        draws = generator.choice(tokens, (24, 30), p=shares)
        operations = ["".join(line) for line in draws]
    masks = _masks(method, sparsity, seed, layers)
    given = {"model": "w2v2-demo", "method": method, "sparsity": sparsity, "seed": seed, "lr": lr}
    given |= {"target": target, "scope": None, "prune_every": 50, "init": "auto", "steps": None}
    pruning = {"scope": "encoder", "prune_every": 50, "pattern": "unstructured"}
    _json(
        folder / "config.json",
        {
            "options": given | options,
            "recipe": {"lr": lr, "head_lr": lr, "batch_seconds": 12.0, "epochs": 4, "hold": 0.4},
            "run": {},
            "versions": {"python": "3.11.2", "torch": "2.14.0"},
            "git": "0123456789abcdef",
            "device": "cpu",
            "machine": "Linux",
        },
    )
    about = {"model": "w2v2-demo", "method": method, "target": target, "seed": seed}
    scores = _scores(operations, dev_rate, "per" if target == "phone" else "wer")
    runs = {"omp": 2, "imp": 6, "parp-mask": 2}.get(method, 1)
    _json(
        folder / "results.json",
        about
        | {"split": "test", "steps": 200, "init": "auto", "decode": "greedy", "pruning": pruning}
        | {"sparsity": {"target": sparsity, "in_scope": _zeros(masks), "whole_model": sparsity / 2}}
        | {"protocol": f"{len(operations)} utterances, 6 speakers; greedy", "best_step": 200}
        | {"utterances": len(operations), "audio_seconds": 60.0}
        | {"wall_seconds": 1.5, "real_time_factor": 0.025}
        | scores
        | {"cost": {"fine_tuning_runs": runs, "steps": 200 * runs, "training_seconds": 60.0 * runs}}
        | {"tensors": {name: _tensor(mask, generator) for name, mask in masks.items()}}
        | {"bytes": {"dense": 4_000_000, "bitmask": 2_500_000, "zip": 2_200_000}},
    )
    _lines(folder / "metrics.jsonl", _events(method, sparsity, dev_rate, 200))
    _lines(
        folder / "test.jsonl",
        [
            {"utt_id": f"spk{i % 6}-{i}", "speaker": f"spk{i % 6}", "operations": line}
            | {"reference": [], "hypothesis": []}
            for i, line in enumerate(operations)
        ],
    )
    metadata = about | {"scope": "encoder", "sparsity": sparsity, "source_run": folder.name}
    save_masks(
        folder / "masks.pt",
        {} if method == "dense" else masks,
        metadata | {"weights_hash": "0"},
    )
    return folder


def _scores(operations: list[str], dev_rate: float, name: str) -> dict[str, Any]:
    text = "".join(operations)
    tokens = len(text) - text.count("I")
    rate = (len(text) - text.count("=")) / tokens
    counts = zip(("substitutions", "deletions", "insertions"), "SDI", strict=True)
    test = {"rate": rate} | {kind: text.count(letter) for kind, letter in counts}
    test |= {"reference_tokens": tokens, "ci95": [0.9 * rate, 1.1 * rate]}
    dev = test | {"rate": dev_rate, "ci95": [0.9 * dev_rate, 1.1 * dev_rate]}
    return {name: test, "dev": {name: dev}}


def _masks(method: str, sparsity: float, seed: int, layers: int) -> dict[str, torch.Tensor]:
    shared = torch.Generator().manual_seed(seed)
    own = torch.Generator().manual_seed(len(method))
    masks = {}
    for layer in range(layers):
        for role in ROLES:
            shape = (16,) if role.endswith("bias") else (16, 16)
            score = torch.rand(shape, generator=shared) + 0.3 * torch.rand(shape, generator=own)
            dropped = round(sparsity * score.numel())
            order = score.flatten().argsort()
            mask = torch.ones(score.numel(), dtype=torch.bool)
            mask[order[:dropped]] = False
            masks[f"encoder.layers.{layer}.{role}"] = mask.reshape(shape)
    return masks


def _zeros(masks: dict[str, torch.Tensor]) -> float:
    kept = sum(int(mask.sum()) for mask in masks.values())
    return 1.0 - kept / sum(mask.numel() for mask in masks.values())


def _tensor(mask: torch.Tensor, generator: np.random.Generator) -> dict[str, Any]:
    zeros = int(mask.numel() - mask.sum())
    return {"size": mask.numel(), "zeros": zeros, "shift": float(generator.uniform(1e-6, 1e-4))}


def _events(method: str, sparsity: float, dev_rate: float, steps: int) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = []
    for step in range(1, steps + 1):
        at = {"stage": 0, "step": step}
        values = {"loss": 3.0 / step, "lr": 1e-4, "grad_norm": 1.0, "skipped": 0, "seconds": 0.1}
        events.append({"event": "train", **at, **values})
        if method not in STATIC and step % 50 == 0:
            reprune = {"sparsity": sparsity, "threshold": 0.01 * step, "revived": 600 // step}
            ious = {"newly_pruned": 600 // step, "iou_first": 1 - step / 1000, "iou_previous": 0.95}
            events.append({"event": "reprune", **at, **reprune, **ious})
        if step % 40 == 0:
            rate = dev_rate + (steps - step) / 400
            scored = {"best": rate, "wall_seconds": 0.2, "per": rate, "wer": rate}
            events.append({"event": "dev", **at, **scored})
    return events


def _json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2), encoding="utf-8")


def _lines(path: Path, values: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(value) + "\n" for value in values), encoding="utf-8")
