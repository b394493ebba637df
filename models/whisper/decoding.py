"""Greedy and beam-search decoding of Whisper.

Shape letters: B utterances, N beams, F mel frames, M mels, L tokens, V vocab.
"""

from typing import Protocol

import torch
from torch import Tensor

from models.whisper.beam_search import BeamSearch
from models.whisper.config import DecodingOptions
from models.whisper.graphed_decoding import GreedyGraphs
from models.whisper.kv_cache import EncodedAudio, KVCache, ProjectedAudio
from models.whisper.model import Whisper

_GPU_STEPS_PER_CHECK = 8  # Asking a GPU who has finished makes it wait for us.


def generate(
    model: Whisper,
    log_mel: Tensor,
    options: DecodingOptions,
    fast: bool = True,
    graphs: GreedyGraphs | None = None,
) -> list[list[int]]:
    """Transcribe a batch of utterances.

    The model is in eval mode meanwhile and no gradient is recorded. Nothing is random. Scores are
    float32 whatever the model's dtype. An utterance's result does not depend on the others beyond
    rounding; those that ended leave the batch.

    Args:
        model: Any Whisper, on the device of ``log_mel``.
        log_mel: (B, M, F) floating.
        options: Start ids, limits, filters and beam size.
        fast: Whether a CPU encodes utterance by utterance and, for greedy decoding, attends to the
            audio unprojected.
        graphs: With it greedy steps replay what it has captured, and captures.

    Returns:
        Per utterance the new ids, without start ids and end token.

    Raises:
        ValueError: If the options do not fit the model or ``log_mel`` has another shape, or steps
            can't be captured.

    Source:
        Token for token what ``WhisperForConditionalGeneration.generate`` of transformers returns
        for audio up to 30 s with ``return_timestamps=False``, ``do_sample=False``,
        ``early_stopping=False``, ``num_beams=beam_size``, ``decoder_input_ids`` (or the init
        tokens of its generation config) equal to ``start_ids``, and
        ``max_new_tokens=max_tokens - len(start_ids)``. Its ``max_length`` means another limit
        there: ``max_tokens = min(max_length + len(start_ids), text_positions)``, which is 448 for
        the published checkpoints' ``max_length`` of 448. One difference: if the text holds two
        timestamp ids in a row, ``generate`` takes it for long-form output and cuts it there.
    """
    _check_options(model, options)
    was_training = model.training

    model.eval()
    try:
        with torch.inference_mode():
            if graphs is not None and options.beam_size == 1:
                cross = model.decoder.cross_keys_values(model.encode(log_mel))
                steps: Steps = graphs.begin(model, cross, options.max_tokens)
                ids = _decode_greedily(_Scorer(model, steps, options), options)
            else:
                fill = _fill_on_cpu if fast and log_mel.device.type == "cpu" else _fill
                cache = fill(model, log_mel, options)
                scorer = _Scorer(model, _PlainSteps(model, cache), options)
                if options.beam_size == 1:
                    ids = _decode_greedily(scorer, options)
                else:
                    ids = _decode_with_beams(scorer, cache, options)
    finally:
        model.train(was_training)
    return [_until(row, options.eos_id) for row in ids.tolist()]


def _fill(model: Whisper, log_mel: Tensor, options: DecodingOptions) -> KVCache:
    """Encode log-mel (B, M, F) and return a cache that holds what the decoder attends to."""
    return model.new_cache(model.encode(log_mel), options.max_tokens, options.beam_size)


def _fill_on_cpu(model: Whisper, log_mel: Tensor, options: DecodingOptions) -> KVCache:
    """Encode one utterance at a time: what is computed with stays in the CPU's cache."""
    if options.beam_size == 1:  # so few queries that keys and values would cost more
        encoded = torch.cat([model.encode(one) for one in log_mel.split(1)])
        return KVCache([EncodedAudio(encoded)] * len(model.decoder.layers), options.max_tokens)
    audio: list[ProjectedAudio] = []
    for index, one in enumerate(log_mel.split(1)):
        pairs = model.decoder.cross_keys_values(model.encode(one))
        if not audio:
            sizes = (len(log_mel), *pairs[0][0].shape[1:])
            audio = [ProjectedAudio(k.new_empty(sizes), v.new_empty(sizes)) for k, v in pairs]
        for held, (keys, values) in zip(audio, pairs, strict=True):
            held.keys[index], held.values[index] = keys[0], values[0]
    return KVCache(audio, options.max_tokens, options.beam_size)


def _decode_greedily(scorer: "_Scorer", options: DecodingOptions) -> Tensor:
    """Take the best id in every step; return (B, max_ids), rows meaningful up to eos_id."""
    num_utterances = scorer.steps.num_utterances
    max_ids = options.max_tokens - len(options.start_ids)
    device = scorer.device
    results = torch.full((num_utterances, max_ids), options.eos_id, device=device)
    utterances = torch.arange(num_utterances, device=device)
    is_done = torch.zeros_like(utterances, dtype=torch.bool)
    next_ids = scorer.start_ids(num_utterances)

    for step in range(max_ids):
        next_ids = scorer.next_logits(next_ids).argmax(1, keepdim=True)
        results[utterances, step] = next_ids[:, 0]
        is_done |= next_ids[:, 0] == options.eos_id
        if not _is_time_to_check(step, device):
            continue
        kept = _rows_to_keep(is_done)
        if kept is not None:
            if not len(kept):
                break
            if scorer.steps.keep_utterances(kept):
                utterances = utterances[kept]
                is_done = is_done[kept]
                next_ids = next_ids[kept]

    return results


def _decode_with_beams(scorer: "_Scorer", cache: KVCache, options: DecodingOptions) -> Tensor:
    """Search with ``options.beam_size`` beams; return (B, max_ids), filled with eos_id."""
    num_utterances = cache.num_utterances
    max_ids = options.max_tokens - len(options.start_ids)
    device = scorer.device
    search = BeamSearch(
        num_utterances,
        options.beam_size,
        max_ids,
        options.eos_id,
        options.length_penalty,
        device,
    )
    results = torch.full((num_utterances, max_ids), options.eos_id, device=device)
    utterances = torch.arange(num_utterances, device=device)
    next_ids = scorer.start_ids(num_utterances * options.beam_size)

    for step in range(max_ids):
        rows, next_ids = search.advance(scorer.next_log_probs(next_ids))
        cache.reorder(rows)
        if not _is_time_to_check(step, device):
            continue
        kept = _rows_to_keep(search.is_done)
        if kept is not None:
            if not len(kept):
                break
            results[utterances] = search.best_ids
            next_ids = next_ids.view(-1, options.beam_size)[kept].view(-1, 1)
            cache.keep_utterances(kept)
            search.keep_utterances(kept)
            utterances = utterances[kept]

    results[utterances] = search.best_ids
    return results


class Steps(Protocol):
    """A decoder that is fed token by token."""

    @property
    def length(self) -> int:
        """Tokens held so far."""
        ...

    @property
    def num_utterances(self) -> int:
        """Utterances that are decoded."""
        ...

    def append(self, ids: Tensor) -> Tensor:
        """Append ids (rows, L); return float32 logits (rows, V) of the next one."""
        ...

    def keep_utterances(self, utterances: Tensor) -> bool:
        """Drop every utterance but ``utterances``; return False where all have to stay."""
        ...


class _PlainSteps:
    """Steps that are computed as they come, with a cache that grows."""

    def __init__(self, model: Whisper, cache: KVCache) -> None:
        self._model = model
        self._cache = cache

    @property
    def length(self) -> int:
        return self._cache.length

    @property
    def num_utterances(self) -> int:
        return self._cache.num_utterances

    def append(self, ids: Tensor) -> Tensor:
        hidden = self._model.decoder(ids, cache=self._cache)[:, -1]
        return self._model.head(hidden).float()

    def keep_utterances(self, utterances: Tensor) -> bool:
        self._cache.keep_utterances(utterances)
        return True


class _Scorer:
    """Scores of the next id, with the ids that may not be generated at minus infinity."""

    def __init__(self, model: Whisper, steps: Steps, options: DecodingOptions) -> None:
        self.device = device = model.decoder.positions.device
        self.steps = steps
        self._start_ids = torch.tensor(options.start_ids, device=device)
        self._suppressed = torch.zeros(model.config.vocab_size, dtype=torch.bool, device=device)
        self._suppressed[list(options.suppress_ids)] = True
        self._suppressed_first = self._suppressed.clone()
        self._suppressed_first[list(options.begin_suppress_ids)] = True

    def start_ids(self, num_rows: int) -> Tensor:
        """Return (num_rows, L): the ids to score first."""
        return self._start_ids.expand(num_rows, -1)

    def next_logits(self, ids: Tensor) -> Tensor:
        """Append ids (rows, L); return float32 logits (rows, V) of the next one."""
        return self._filter(self.steps.append(ids))

    def next_log_probs(self, ids: Tensor) -> Tensor:
        """Append ids as ``next_logits`` does; return log-probabilities, filtered afterwards."""
        return self._filter(self.steps.append(ids).log_softmax(1))

    def _filter(self, scores: Tensor) -> Tensor:
        is_first = self.steps.length == len(self._start_ids)
        return scores.masked_fill_(
            self._suppressed_first if is_first else self._suppressed, float("-inf")
        )


def _is_time_to_check(step: int, device: torch.device) -> bool:
    """Tell whether to look for finished utterances after this step."""
    return device.type == "cpu" or (step + 1) % _GPU_STEPS_PER_CHECK == 0


def _rows_to_keep(is_done: Tensor) -> Tensor | None:
    """Return the rows not done, or None if too few are done to pay for moving the others.

    A row that can keep its place does: only so many move as there are places of rows done.
    """
    kept = (~is_done).nonzero()[:, 0]
    if 4 * len(kept) > 3 * len(is_done):
        return None
    rows = torch.arange(len(kept), device=is_done.device)
    rows[is_done[: len(kept)]] = kept[kept >= len(kept)]
    return rows


def _until(ids: list[int], eos_id: int) -> list[int]:
    """Cut ``ids`` before the first ``eos_id``."""
    return ids[: ids.index(eos_id)] if eos_id in ids else ids


def _check_options(model: Whisper, options: DecodingOptions) -> None:
    """Raise ValueError where ``options`` do not fit ``model``."""
    config = model.config
    if options.beam_size < 1:
        raise ValueError(f"beam_size is {options.beam_size}: use 1 (greedy) or more")
    if not 0 < len(options.start_ids) < options.max_tokens <= config.text_positions:
        raise ValueError(
            f"max_tokens is {options.max_tokens} with {len(options.start_ids)} start ids: use at "
            f"least one start id, a larger max_tokens, and at most {config.text_positions}"
        )
    ids = (*options.start_ids, options.eos_id, *options.suppress_ids, *options.begin_suppress_ids)
    if not 0 <= min(ids) <= max(ids) < config.vocab_size:
        raise ValueError(
            f"decoding options name ids from {min(ids)} to {max(ids)}, the model has 0 to "
            f"{config.vocab_size - 1}: use the options of the same tokenizer"
        )
