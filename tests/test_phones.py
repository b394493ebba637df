"""Folding of TIMIT's phones."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.phones import PHONES_39, PHONES_48, PHONES_61, fold_phones, merge_silence

ANY_PHONES = st.lists(st.sampled_from(PHONES_61))


@pytest.mark.parametrize(("phones", "count"), [(PHONES_61, 61), (PHONES_48, 48), (PHONES_39, 39)])
def test_phone_sets_have_their_size_and_are_sorted(phones: tuple[str, ...], count: int) -> None:
    assert len(set(phones)) == count
    assert list(phones) == sorted(phones)


def test_phones_39_are_the_scored_set() -> None:
    assert PHONES_39 == tuple(
        "aa ae ah aw ay b ch d dh dx eh er ey f g hh ih iy jh k l m n ng ow oy p r s sh sil t th "
        "uh uw v w y z".split()
    )


def test_phones_48_are_the_training_set() -> None:
    assert set(PHONES_48) - set(PHONES_39) == set("ao ax ix el en zh vcl cl epi".split())


@pytest.mark.parametrize(
    ("phones", "folded48", "folded39"),
    [
        ("h# pau epi", "sil sil epi", "sil sil sil"),
        ("bcl dcl gcl pcl tcl kcl", "vcl vcl vcl cl cl cl", "sil sil sil sil sil sil"),
        ("ax-h ax ah", "ax ax ah", "ah ah ah"),
        ("axr er em eng nx hv ux", "er er m ng n hh uw", "er er m ng n hh uw"),
        ("ao el en ix zh dx", "ao el en ix zh dx", "aa l n ih sh dx"),
        ("q h# q ae q", "sil ae", "sil ae"),
    ],
)
def test_fold_phones_follows_the_table(phones: str, folded48: str, folded39: str) -> None:
    assert fold_phones(phones.split(), 48) == folded48.split()
    assert fold_phones(phones.split(), 39) == folded39.split()


def test_fold_phones_leaves_the_other_phones_alone() -> None:
    folding = "h# pau epi bcl dcl gcl pcl tcl kcl ax-h ax axr em eng nx hv ux ao el en ix zh q"
    others = [phone for phone in PHONES_61 if phone not in folding.split()]
    assert fold_phones(others, 39) == others
    assert fold_phones(others, 48) == others
    assert len(others) == 38


@given(phones=ANY_PHONES)
def test_fold_phones_to_61_keeps_everything(phones: list[str]) -> None:
    assert fold_phones(phones, 61) == phones


@given(phones=ANY_PHONES)
def test_fold_phones_by_way_of_48_equals_folding_at_once(phones: list[str]) -> None:
    assert fold_phones(fold_phones(phones, 48), 39) == fold_phones(phones, 39)


@given(phones=ANY_PHONES, num_phones=st.sampled_from([48, 39]))
def test_fold_phones_twice_changes_nothing(phones: list[str], num_phones: int) -> None:
    once = fold_phones(phones, num_phones)
    assert fold_phones(once, num_phones) == once


@pytest.mark.parametrize("num_phones", [61, 48, 39])
def test_fold_phones_of_an_unknown_phone_names_it(num_phones: int) -> None:
    with pytest.raises(ValueError, match="unknown phone 'AA'"):
        fold_phones(["aa", "AA"], num_phones)


def test_fold_phones_to_61_of_a_folded_phone_raises() -> None:
    with pytest.raises(ValueError, match="unknown phone 'sil'"):
        fold_phones(["sil"], 61)


def test_fold_phones_to_another_size_raises() -> None:
    with pytest.raises(ValueError, match="no TIMIT phone set has 40 phones"):
        fold_phones(["aa"], 40)


def test_merge_silence_collapses_runs_only() -> None:
    phones = "sil sil aa aa sil sil sil b sil".split()
    assert merge_silence(phones) == "sil aa aa sil b sil".split()


@given(phones=st.lists(st.sampled_from(["sil", "aa", "b"])))
def test_merge_silence_leaves_no_two_in_a_row(phones: list[str]) -> None:
    merged = merge_silence(phones)
    assert ("sil", "sil") not in zip(merged, merged[1:], strict=False)
    assert [p for p in merged if p != "sil"] == [p for p in phones if p != "sil"]
