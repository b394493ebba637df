"""The model card that stands beside exported weights: what they are, and how to use them."""

import math
from pathlib import Path

from data.files import JsonObject
from models import FAMILIES
from models.checkpoint import Checkpoint

FULL_CONTEXT_SECONDS = 30  # what programs that run log-mel models pad audio to
_LOAD_CTC = """\
from transformers import AutoFeatureExtractor, AutoTokenizer, {architecture}

model = {architecture}.from_pretrained("FOLDER").eval()
inputs = AutoFeatureExtractor.from_pretrained("FOLDER")(
    waveform, sampling_rate=16000, return_tensors="pt"
)
ids = model(**inputs).logits.argmax(-1)
print(AutoTokenizer.from_pretrained("FOLDER").batch_decode(ids)[0])
"""
_LOAD_SEQ2SEQ = """\
from transformers import AutoFeatureExtractor, AutoTokenizer, {architecture}

model = {architecture}.from_pretrained("FOLDER").eval()
inputs = AutoFeatureExtractor.from_pretrained("FOLDER")(
    waveform, sampling_rate=16000, return_tensors="pt"
)
ids = model.generate(**inputs)
print(AutoTokenizer.from_pretrained("FOLDER").batch_decode(ids, skip_special_tokens=True)[0])
"""


def context_note(checkpoint: Checkpoint) -> str:
    """Say what audio an export takes where that is not what other programs expect; else "".

    One clause without a full stop, with the remedy.
    """
    audio_ctx = checkpoint.frontend.get("audio_ctx")
    if audio_ctx == "own":
        return (
            "trained on each utterance's own length, where other programs pad all audio to "
            f"{checkpoint.config.audio_positions / 50:g} s, so its output there has to be scored "
            "anew; for them train with --audio-ctx full"
        )
    if audio_ctx is None or float(audio_ctx) >= FULL_CONTEXT_SECONDS:
        return ""
    return (
        f"takes {math.ceil(float(audio_ctx))} s of audio, the context that it was trained with: "
        "other programs cut off what is longer, or refuse it; cut recordings before, or train with "
        f"--audio-ctx full for {FULL_CONTEXT_SECONDS} s"
    )


def model_card(
    checkpoint: Checkpoint,
    num_parameters: int,
    results: JsonObject | None = None,
    load_with: str | None = None,
) -> str:
    """Return the text of an export's README.md.

    Args:
        checkpoint: What is exported.
        num_parameters: As they are written.
        results: What results.json says of this checkpoint, None where it was not scored.
        load_with: Python that loads the folder and transcribes ``waveform``; None is transformers'.
    """
    family = FAMILIES[checkpoint.model.family]
    if load_with is None:
        template = _LOAD_SEQ2SEQ if family.seq2seq else _LOAD_CTC
        load_with = template.format(architecture=family.hugging_face.architecture)
    name = checkpoint.run.model or checkpoint.model.family
    tags = ["pruned", "parp"] if checkpoint.run.sparsity else ["parp"]
    header = ["---", "pipeline_tag: automatic-speech-recognition", f"tags: [{', '.join(tags)}]"]
    lines = [*header, "---", "", f"# {name}", ""]
    lines += [f"- {fact}" for fact in _facts(checkpoint, num_parameters)]
    lines += ["", "## Score", "", _score(results), "", "## Use", ""]
    lines += ["`waveform` is a float32 array of 16 kHz mono audio in [-1, 1].", ""]
    lines += ["```python", load_with.rstrip(), "```", ""]
    return "\n".join(lines)


def _facts(checkpoint: Checkpoint, num_parameters: int) -> list[str]:
    """Say what the model is, a line each."""
    run = checkpoint.run
    tokenizer = checkpoint.tokenizer
    parameters = list(checkpoint.model.parameters())
    size = sum(parameter.numel() for parameter in parameters)
    zeros = size - sum(int(parameter.count_nonzero()) for parameter in parameters)
    facts = [f"Model: {checkpoint.model.family}, {num_parameters:,} parameters."]
    if tokenizer is not None:
        facts.append(f"Recognises: {run.target or tokenizer.kind}, {tokenizer.vocab_size} tokens.")
    if run.method and run.sparsity:
        facts.append(
            f"Pruned with {run.method} to {run.sparsity:.1%} of its {run.scope} weights; "
            f"{zeros / size:.1%} of all parameters are zero. Zeros are stored as plain zeros: they "
            "make the file neither smaller nor faster."
        )
    elif run.method:
        facts.append(f"Fine-tuned with method {run.method}, not pruned.")
    if run.data:
        spoken = "made-up speech" if run.data == "demo" else Path(run.data).name
        facts.append(f"Corpus: {spoken}.")
    if run.init:
        facts.append(f"Began with: {run.init}.")
    if run.converted_from:
        facts.append(f"Weights converted from: {run.converted_from}.")
    context = context_note(checkpoint)
    facts.append(f"Audio: {context}." if context else "Audio: 16 kHz, mono.")
    return facts


def _score(results: JsonObject | None) -> str:
    """Say how well the model did, and under what rules."""
    protocol = (results or {}).get("protocol")
    if not results or not isinstance(protocol, str):
        return "Not known here."
    rates = [
        f"{metric.upper()} {100 * value['rate']:.2f} %"
        for metric, value in results.items()
        if isinstance(value, dict) and isinstance(value.get("rate"), float)
    ]
    return f"{', '.join(rates)}. {protocol}."
