"""Write version_1/: a checkpoint, a mask file and a run's JSON files as version 0.1.0 left them.

Made at commit 8a4d60f, the last before the padding mode left the architecture, with its own code:

    python make_version_1.py FOLDER RUN

RUN is the folder of a finished run, of which the small files are copied.
"""

import shutil
import sys
from pathlib import Path

import torch

from models import build_model
from models.checkpoint import Checkpoint, save_checkpoint
from models.tokenizers import SymbolTokenizer
from pruning.mask_file import save_masks
from pruning.masks import apply_masks, magnitude_masks


def main() -> None:
    folder, run = map(Path, sys.argv[1:])
    torch.manual_seed(0)
    sizes = {"conv_dims": (8, 8), "conv_kernels": (10, 4), "conv_strides": (5, 4), "d_model": 8}
    sizes |= {"num_layers": 2, "num_heads": 2, "ffn_dim": 16, "positional_kernel": 4}
    sizes |= {"positional_groups": 2, "conv_norm": "group", "conv_bias": False}
    tokenizer = SymbolTokenizer.for_ctc("char", sorted(" abc"))
    model = build_model(
        "w2v2-demo", vocab_size=tokenizer.vocab_size, padding="packed", **sizes
    ).eval()
    scope = r"encoder\.layers\.\d+\.(self_attn\.(q|k|v|out)_proj|ffn\.fc[12])\.(weight|bias)"
    scoped = {n: p for n, p in model.named_parameters() if n.startswith("encoder.layers.")}
    scoped = {n: p for n, p in scoped.items() if "norm" not in n}
    masks = magnitude_masks(scoped, 0.5)
    apply_masks(scoped, masks)
    about = {"model": "w2v2-demo", "scope": "encoder", "sparsity": 0.5, "target": "char"}
    about |= {"method": "parp", "seed": 0, "step": 7, "weights_hash": "0" * 64}
    save_checkpoint(
        folder / "best.pt",
        Checkpoint(
            model,
            tokenizer,
            masks,
            {"kind": "waveform", "normalize": True},
            {"blank_id": tokenizer.blank_id},
            {**about, "scope_pattern": scope, "freeze": "none"},
        ),
    )
    save_masks(folder / "masks.pt", masks, {**about, "source_run": "old"})
    waveform = torch.randn(2, 400)
    with torch.no_grad():
        logits = model.logits(waveform[:1])
    torch.save({"waveform": waveform[:1], "logits": logits}, folder / "logits.pt")
    for name in ("config.json", "metrics.jsonl", "results.json", "test.jsonl"):
        shutil.copy(run / name, folder / "run" / name)


if __name__ == "__main__":
    main()
