from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models.whisper import Whisper, decoding
from models.whisper.decoding import DecodingOptions, generate
from tests.whisper_hf import SMALL, hf_model, ours_from

transformers = pytest.importorskip("transformers")
transformers.logging.set_verbosity_error()

# Ids above no-timestamps are timestamps to HF, so it comes last.
CONFIG = replace(SMALL, text_positions=24, vocab_size=24)
LANGUAGE, TASK, EOS, START, NO_TIMESTAMPS = 19, 20, 21, 22, 23
OPTIONS = DecodingOptions(start_ids=(START, NO_TIMESTAMPS), eos_id=EOS, max_tokens=20)

Pair = tuple[nn.Module, Whisper]


@pytest.fixture(scope="module")
def log_mel() -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return 2 * torch.randn(8, CONFIG.num_mels, 40, generator=generator, dtype=torch.float64)


@pytest.fixture
def pair(randomise: Callable) -> Pair:
    hf = randomise(hf_model(CONFIG).double(), scale=0.5, seed=17)  # texts of many lengths
    settings = hf.generation_config
    settings.decoder_start_token_id, settings.no_timestamps_token_id = START, NO_TIMESTAMPS
    settings.eos_token_id = settings.pad_token_id = EOS
    settings.is_multilingual = False
    return hf, ours_from(hf, CONFIG)


@pytest.fixture
def model(pair: Pair) -> Whisper:
    return pair[1]


def _hf_decode(hf: nn.Module, log_mel: Tensor, options: DecodingOptions, **more: Any) -> list:
    more = more or {
        "decoder_input_ids": torch.tensor(options.start_ids).expand(len(log_mel), -1),
        "max_new_tokens": options.max_tokens - len(options.start_ids),
    }
    ids = hf.generate(
        log_mel,
        num_beams=options.beam_size,
        length_penalty=options.length_penalty,
        early_stopping=False,
        do_sample=False,
        suppress_tokens=list(options.suppress_ids) or None,
        begin_suppress_tokens=list(options.begin_suppress_ids) or None,
        **more,
    ).tolist()
    return [row[: row.index(EOS)] if EOS in row else row for row in ids]


@pytest.mark.parametrize("beam_size", [1, 5])
def test_decode_of_the_test_model_gives_early_ends_and_limit_hits(
    model: Whisper, log_mel: Tensor, beam_size: int
) -> None:
    lengths = [len(ids) for ids in generate(model, log_mel, replace(OPTIONS, beam_size=beam_size))]
    assert len({n for n in lengths if n < 18}) >= 4, lengths
    assert lengths.count(18) >= 1, lengths


@pytest.mark.parametrize("batch", [1, 3, 8])
@pytest.mark.parametrize("beam_size", [1, 2, 5])
def test_decode_equals_hf_generate(pair: Pair, log_mel: Tensor, beam_size: int, batch: int) -> None:
    hf, ours = pair
    options = replace(OPTIONS, beam_size=beam_size)
    expected = _hf_decode(hf, log_mel[-batch:], options)
    assert generate(ours, log_mel[-batch:], options) == expected


@pytest.mark.parametrize("beam_size", [1, 5])
def test_decode_with_suppressed_ids_equals_hf_generate_and_lacks_them(
    pair: Pair, log_mel: Tensor, beam_size: int
) -> None:
    hf, ours = pair
    free = generate(ours, log_mel, replace(OPTIONS, beam_size=beam_size))
    never = tuple({i for ids in free for i in ids[1:3]})[:3]
    not_first = tuple({ids[0] for ids in free if ids} - set(never))[:3] + (EOS,)
    options = replace(
        OPTIONS, beam_size=beam_size, suppress_ids=never, begin_suppress_ids=not_first
    )
    result = generate(ours, log_mel, options)
    assert result == _hf_decode(hf, log_mel, options)
    assert not {i for ids in result for i in ids} & set(never)
    assert not {ids[0] for ids in result} & set(not_first)
    assert {i for ids in result for i in ids[1:]} & set(not_first)


@pytest.mark.parametrize("length_penalty", [0.0, 2.0])
def test_decode_with_length_penalty_equals_hf_generate(
    pair: Pair, log_mel: Tensor, length_penalty: float
) -> None:
    hf, ours = pair
    options = replace(OPTIONS, beam_size=3, length_penalty=length_penalty)
    assert generate(ours, log_mel, options) == _hf_decode(hf, log_mel, options)


@pytest.mark.parametrize("max_length", [9, 448])
def test_decode_equals_hf_generate_with_its_own_english_prompt_and_max_length(
    pair: Pair, log_mel: Tensor, max_length: int
) -> None:
    hf, ours = pair
    # HF adds the start ids to max_length and caps it at the text positions.
    max_tokens = min(max_length + 2, CONFIG.text_positions)
    expected = _hf_decode(hf, log_mel, OPTIONS, max_length=max_length)
    assert generate(ours, log_mel, replace(OPTIONS, max_tokens=max_tokens)) == expected


@pytest.mark.parametrize("beam_size", [1, 5])
def test_decode_equals_hf_generate_with_its_own_multilingual_prompt(
    pair: Pair, log_mel: Tensor, beam_size: int
) -> None:
    hf, ours = pair
    hf.generation_config.is_multilingual = True
    hf.generation_config.lang_to_id = {"<|en|>": LANGUAGE}
    hf.generation_config.task_to_id = {"transcribe": TASK}
    options = replace(
        OPTIONS, start_ids=(START, LANGUAGE, TASK, NO_TIMESTAMPS), beam_size=beam_size
    )
    expected = _hf_decode(hf, log_mel, options, language="en", task="transcribe", max_new_tokens=16)
    assert generate(ours, log_mel, options) == expected


@pytest.mark.parametrize("beam_size", [1, 5])
def test_decode_does_not_depend_on_batch_mates(
    model: Whisper, log_mel: Tensor, beam_size: int
) -> None:
    options = replace(OPTIONS, beam_size=beam_size)
    together = generate(model, log_mel, options)
    assert [generate(model, one[None], options)[0] for one in log_mel] == together
    assert generate(model, log_mel.flip(0), options) == together[::-1]


@pytest.mark.parametrize("beam_size", [1, 5])
def test_decode_checked_rarely_as_on_a_gpu_gives_the_same(
    model: Whisper, log_mel: Tensor, beam_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = replace(OPTIONS, beam_size=beam_size)
    expected = generate(model, log_mel, options)
    monkeypatch.setattr(decoding, "_is_time_to_check", lambda step, device: step % 8 == 7)
    assert generate(model, log_mel, options) == expected


@pytest.mark.parametrize("beam_size", [1, 5])
def test_decode_on_the_plain_path_gives_the_same(
    model: Whisper, log_mel: Tensor, beam_size: int
) -> None:
    options = replace(OPTIONS, beam_size=beam_size)
    assert generate(model, log_mel, options, fast=False) == generate(model, log_mel, options)


@pytest.mark.parametrize("max_tokens", [3, 7, 24])
def test_decode_stops_at_max_tokens_start_ids_included(
    model: Whisper, log_mel: Tensor, max_tokens: int
) -> None:
    longest = generate(model, log_mel, replace(OPTIONS, max_tokens=CONFIG.text_positions))
    limited = generate(model, log_mel, replace(OPTIONS, max_tokens=max_tokens))
    assert limited == [ids[: max_tokens - 2] for ids in longest]
    assert max(map(len, limited)) == max_tokens - 2


def test_decode_leaves_the_training_mode_as_it_was(model: Whisper, log_mel: Tensor) -> None:
    model.train()
    generate(model, log_mel[:1], OPTIONS)
    assert model.training


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"beam_size": 0}, "beam_size is 0"),
        ({"max_tokens": 2}, "max_tokens is 2 with 2 start ids"),
        ({"max_tokens": 25}, "at most 24"),
        ({"start_ids": ()}, "at least one start id"),
        ({"eos_id": 24}, "the model has 0 to 23"),
        ({"suppress_ids": (-1,)}, "from -1 to 23"),
    ],
)
def test_decode_with_options_of_another_model_is_a_value_error(
    model: Whisper, log_mel: Tensor, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        generate(model, log_mel, replace(OPTIONS, **change))
