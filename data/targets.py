"""What a model is to write for an utterance."""

import sys
from collections.abc import Callable, Sequence

from tqdm import tqdm

from data.phones import fold_phones
from data.text import normalize_text
from data.utterance import PHONES, TEXT, Utterance


def labels_of(target: str) -> str:
    """Return which label of an utterance a target, or a kind of tokenizer, stands for."""
    return PHONES if target == "phone" else TEXT


def target_text(utterance: Utterance, target: str, num_phones: int) -> str:
    """Return the text that a tokenizer of kind ``target`` encodes for training.

    Args:
        utterance: One recording.
        target: "phone", "char", "subword" or "text".
        num_phones: Phone set of a phone target: 61, 48 or 39.
    """
    if target == "phone":
        return " ".join(fold_phones([phone.label for phone in utterance.phones], num_phones))
    text = normalize_text(utterance.text)
    return " " + text if target == "text" else text  # whisper's words begin with a space


def keep_usable(
    utterances: Sequence[Utterance],
    targets: Sequence[list[int]],
    why_unusable: Callable[[int, Sequence[int]], str | None],
) -> tuple[list[Utterance], list[list[int]]]:
    """Return the utterances that can be trained on with their targets; name the others on stderr.

    Args:
        utterances: Of the training split.
        targets: Token ids of each.
        why_unusable: Says for samples and target ids why they can't be trained on, or None.

    Raises:
        ValueError: If none can.
    """
    pairs = list(zip(utterances, targets, strict=True))
    reasons = [why_unusable(utterance.num_samples, target) for utterance, target in pairs]
    for utterance, reason in zip(utterances, reasons, strict=True):
        if reason:
            tqdm.write(f"left out {utterance.utt_id}: {reason}", file=sys.stderr)
    kept = [pair for pair, reason in zip(pairs, reasons, strict=True) if reason is None]
    if not kept:
        raise ValueError(
            f"none of the {len(pairs)} training utterances can be used, the first because "
            f"{reasons[0]}: check the corpus, or give a --target with fewer tokens"
        )
    return [utterance for utterance, _ in kept], [target for _, target in kept]
