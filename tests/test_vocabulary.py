"""What a new vocabulary keeps of trained weights, and how far decoding goes."""

import torch

from models import build_model
from models.checkpoint import Checkpoint
from models.initial import fit_target, set_vocabulary
from models.tokenizers import SymbolTokenizer
from tests.test_foreign_fields import TINY_CTC, TINY_WHISPER, bpe

LETTERS = ["<pad>", "<s>", "</s>", "<unk>", "|", "E", "T", "A", "'"]


def trained(randomise) -> Checkpoint:
    model = randomise(build_model("w2v2-demo", vocab_size=len(LETTERS), **TINY_CTC))
    return Checkpoint(model, SymbolTokenizer("char", LETTERS, blank_id=0))


def test_rows_of_letters_in_another_case_and_order_are_kept(randomise):
    checkpoint = trained(randomise)
    before = (
        checkpoint.model.head.weight.detach().clone(),
        checkpoint.model.head.bias.detach().clone(),
    )
    tokenizer = SymbolTokenizer.for_ctc("char", "a te'")
    assert set_vocabulary(checkpoint, tokenizer, 0) == []
    order = [
        LETTERS.index(symbol.upper() if len(symbol) == 1 else symbol)
        for symbol in tokenizer.symbols
    ]
    head = checkpoint.model.head
    assert torch.equal(head.weight, before[0][order])
    assert torch.equal(head.bias, before[1][order])
    assert checkpoint.run.head_rows == "kept 6 of 6 rows of the trained CTC head"
    assert head.weight.requires_grad


def test_a_letter_that_the_head_lacks_gets_a_new_row_and_is_named(randomise):
    checkpoint = trained(randomise)
    before = checkpoint.model.head.weight.detach().clone()
    tokenizer = SymbolTokenizer.for_ctc("char", "az")
    assert set_vocabulary(checkpoint, tokenizer, 0) == ["head.weight", "head.bias"]
    weight = checkpoint.model.head.weight
    assert torch.equal(weight[1], before[LETTERS.index("A")])
    assert not any(torch.equal(weight[2], row) for row in before)
    assert checkpoint.run.head_rows == "kept 2 of 3 rows of the trained CTC head, new are z"


def test_phones_keep_nothing_of_letters_that_look_alike(randomise):
    checkpoint = trained(randomise)
    tokenizer = SymbolTokenizer.for_ctc("phone", ["e", "t"])
    assert set_vocabulary(checkpoint, tokenizer, 0) == ["head.weight", "head.bias"]
    assert checkpoint.run.head_rows is None


def test_text_may_take_all_places_of_the_decoder():
    tokenizer = bpe()
    model = build_model("whisper-demo", vocab_size=tokenizer.vocab_size, **TINY_WHISPER)
    checkpoint = Checkpoint(model, tokenizer, decoding={"start_ids": list(tokenizer.start_ids)})
    fit_target(checkpoint, "text", ["ab"], [], 0)
    assert checkpoint.decoding["max_tokens"] == TINY_WHISPER["text_positions"]
    assert checkpoint.decoding["start_ids"] == list(tokenizer.start_ids)
