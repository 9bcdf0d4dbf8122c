"""Parts of a dataset are all of it, each case once."""

import argparse

import pytest

from nnunet_alice.parts import Part


@pytest.mark.parametrize("of", [1, 3, 7, 20])
def test_parts_are_the_whole_and_differ_by_one_case_at_most(of):
    cases = [f"case{number}" for number in range(16)]
    shares = [Part(number, of).share(reversed(cases)) for number in range(1, of + 1)]
    assert sorted(case for share in shares for case in share) == sorted(cases)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_a_part_is_read_and_written():
    assert Part.parse("3/20") == Part(3, 20) and str(Part(3, 20)) == "3/20"


@pytest.mark.parametrize("text", ["", "3", "0/4", "5/4", "a/b", "1/2/3", "-1/3"])
def test_what_is_no_part_is_refused(text):
    with pytest.raises(argparse.ArgumentTypeError, match="3/20"):
        Part.parse(text)
