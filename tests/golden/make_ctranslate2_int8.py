"""Write ctranslate2_int8/: a tiny random whisper, quantised and run by the ctranslate2 package.

Made with ctranslate2 4.8.5, transformers 5.23 and torch 2.15:

    python tests/golden/make_ctranslate2_int8.py
"""

import shutil
import sys
import tempfile
from pathlib import Path

import ctranslate2
import numpy as np
import torch
from tokenizers.pre_tokenizers import ByteLevel

FOLDER = Path(__file__).parent / "ctranslate2_int8"
sys.path.insert(0, str(FOLDER.parents[2]))


def main() -> None:
    from models import build_model
    from models.convert import to_hf
    from models.tokenizers import ByteBPETokenizer

    torch.manual_seed(0)
    sizes = {"d_model": 12, "num_mels": 10, "audio_positions": 40, "text_positions": 16}
    sizes |= {"encoder_layers": 2, "decoder_layers": 2, "encoder_heads": 2, "decoder_heads": 3}
    sizes |= {"encoder_ffn_dim": 20, "decoder_ffn_dim": 28}
    vocab = sorted(ByteLevel.alphabet())
    special = ("endoftext", "startoftranscript", "en", "translate", "transcribe")
    special += ("startofprev", "nospeech", "notimestamps")
    added = {f"<|{token}|>": len(vocab) + i for i, token in enumerate(special)}
    tokenizer = ByteBPETokenizer(vocab, [], added)
    model = build_model("whisper-demo", vocab_size=tokenizer.vocab_size, **sizes)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape))
    decoding = {"start_ids": tokenizer.start_ids, "eos_id": tokenizer.eos_id, "max_tokens": 12}
    decoding |= {"suppress_ids": [1, 3], "begin_suppress_ids": [2]}
    with tempfile.TemporaryDirectory() as folder:
        to_hf(model, Path(folder) / "hf", tokenizer, decoding)
        converter = ctranslate2.converters.TransformersConverter(f"{folder}/hf")
        converter.convert(f"{folder}/ct2", quantization="int8")
        FOLDER.mkdir(exist_ok=True)
        for name in ("model.bin", "config.json"):
            shutil.copy(f"{folder}/ct2/{name}", FOLDER / name)
        # The weights stay int8 values here, but the arithmetic is float32 and so comparable.
        runner = ctranslate2.models.Whisper(f"{folder}/ct2", compute_type="float32")
        log_mel = torch.randn(1, 10, 80).numpy()
        encoded = runner.encode(ctranslate2.StorageView.from_array(log_mel))
        (result,) = runner.generate(
            encoded,
            [list(tokenizer.start_ids)],
            beam_size=1,
            max_length=8,
            suppress_tokens=[],
            suppress_blank=False,
            return_logits_vocab=True,
        )
    np.savez(
        FOLDER / "expected.npz",
        log_mel=log_mel,
        encoded=np.array(encoded),
        ids=np.array([*tokenizer.start_ids, *result.sequences_ids[0]]),
        logits=np.stack([np.array(step) for step in result.logits[0]]),
    )


if __name__ == "__main__":
    main()
