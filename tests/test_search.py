"""Options of the search for hypotheses: what is passed on, what is said, what is refused."""

from dataclasses import dataclass

import pytest

import eval as evaluation
from models import build_model, build_task
from models.search import GREEDY, Search, search_option


@dataclass(frozen=True, kw_only=True)
class Penalised(Search):
    """A search with an option more."""

    length_penalty: float = search_option("how much length counts", 1.0, says="length penalty {:g}")


def test_greedy_search_is_a_beam_of_one_whatever_else_is_set() -> None:
    assert GREEDY.settings() == {"beam_size": 1}
    assert GREEDY.describe() == "greedy"
    assert Search(decode="beam", beam_size=1).describe() == "greedy"


def test_every_option_is_passed_on_and_said_where_it_is_not_the_default() -> None:
    search = Penalised(decode="beam", beam_size=5, length_penalty=0.5)
    assert search.settings() == {"beam_size": 5, "length_penalty": 0.5}
    assert search.describe() == "beam 5, length penalty 0.5"
    assert Penalised(decode="beam", beam_size=3).describe() == "beam 3"


def test_an_option_without_effect_is_refused_by_its_flag() -> None:
    takes = {"beam_size", "length_penalty"}
    Penalised(decode="beam", length_penalty=0.5).check(takes, "whisper")
    Penalised().check({"beam_size"}, "wav2vec2")
    with pytest.raises(ValueError, match="--length-penalty is not for wav2vec2"):
        Penalised(decode="beam", length_penalty=0.5).check({"beam_size"}, "wav2vec2")
    with pytest.raises(ValueError, match="--length-penalty is for beam search: add --decode beam"):
        Penalised(length_penalty=0.5).check(takes, "whisper")


def test_search_of_more_options_is_a_search_alone() -> None:
    options = evaluation.EvalOptions(ckpt="x", decode="beam", beam_size=3, merge_sil=True)
    assert Search.of(options) == Search(decode="beam", beam_size=3)


def test_every_task_says_which_options_it_takes() -> None:
    settings = {"start_ids": [0], "eos_id": 1, "max_tokens": 9}
    settings |= {"suppress_ids": [], "begin_suppress_ids": []}
    ctc = build_task(build_model("w2v2-demo"), {"blank_id": 0}).search_options
    seq2seq = build_task(build_model("whisper-demo"), settings).search_options
    assert "beam_size" in ctc & seq2seq
    assert "length_penalty" in seq2seq - ctc


def test_a_beam_of_no_hypothesis_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--ckpt", "none.pt", "--decode", "beam", "--beam-size", "0"]
    assert evaluation.main(flags) == 2
    assert "--beam-size is 0: give a positive number" in capsys.readouterr().err
