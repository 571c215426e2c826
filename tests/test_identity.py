"""Refusal of options that differ from those of an earlier run."""

from __future__ import annotations

import pytest

from extract.cache.format import CacheError
from extract.utils.errors import MAX_VALUE_LENGTH, listed, shortened
from extract.utils.identity import refuse_changes


def test_equal_options_pass():
    refuse_changes("out", {"a": 1, "b": {"c": (2, 3)}}, {"b": {"c": (2, 3)}, "a": 1})


def test_every_difference_is_named_with_both_values():
    stored, current = {"lr": 0.01, "steps": 5, "old": 1}, {"lr": 0.1, "steps": 5, "new": "x"}
    with pytest.raises(ValueError) as error:
        refuse_changes("out", stored, current)
    assert str(error.value) == (
        "out: was made with other options: lr (0.01 there, 0.1 now), new (None there, 'x' now), "
        "old (1 there, None now); --overwrite starts anew"
    )


def test_nested_options_are_named_by_their_path():
    with pytest.raises(CacheError, match=r"options: detector\.name \('a' there, 'b' now\);"):
        refuse_changes("out", {"detector": {"name": "a", "k": 1}}, {"detector": {"name": "b", "k": 1}}, CacheError)


def test_long_values_keep_beginning_and_end():
    stored, current = ("/data/" + "x" * 200 + end for end in ("one", "two"))
    with pytest.raises(ValueError, match=r"cache \('/data/x*…x*one' there, '/data/x*…x*two' now\)") as error:
        refuse_changes("out", {"cache": stored}, {"cache": current})
    assert len(str(error.value)) < 4 * MAX_VALUE_LENGTH


def test_values_and_lists_of_messages_are_cut():
    assert shortened("a" * 60) == "a" * 60 and len(shortened("a" * 61 + "end")) == 61
    assert shortened("a" * 61 + "end").endswith("aend")
    assert listed(["a", "b", "c"]) == "a, b, c"
    assert listed("abcde") == "a, b, c and 2 more"
