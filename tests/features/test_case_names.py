"""Cases that a table writes otherwise are never taken for cases without a label."""

import numpy as np
import pandas as pd
import pytest
from support.refused import refused

from nnunet_alice.errors import InputError
from nnunet_alice.features.case_names import written_otherwise
from nnunet_alice.features.probe_data import load_table


@pytest.mark.parametrize(
    ("case", "name"),
    [
        ("s01", "s1"),
        ("007", "7"),
        ("s01", "S01"),
        ("s01", "s01.nii.gz"),
        ("s01", "s01_0000.nii.gz"),
        ("sub-01", "sub_01"),
        ("s01", " s01 "),
        ("s01.nrrd", "s01"),
        ("mu\u0308ller", "M\u00fcller"),  # files of macOS, and a spreadsheet
        ("\u60a3\u8005 01", "\u60a3\u8005_1"),
    ],
)
def test_spellings_of_one_case(case, name):
    assert written_otherwise([case], [name]) == {case: name}


@pytest.mark.parametrize(
    ("case", "name"),
    [("s01", "s02"), ("s1", "s11"), ("a1", "b1"), ("s10", "s1"), ("s01", "s01")]
    + [("m\u00fcller", "m\u00f6ller"), ("\u60a3\u8005", "\u5f20\u4e09")],
)
def test_different_cases_and_equal_names_are_no_matter_of_spelling(case, name):
    assert written_otherwise([case], [name]) == {}


def test_names_that_are_cases_themselves_or_could_be_two_are_left_alone():
    assert written_otherwise(["s1", "s01"], ["s01"]) == {}
    assert written_otherwise(["s1"], ["s01", "S1"]) == {}


def test_numbers_at_the_end_tell_cases_apart():
    """Four digits are a channel only where they are 0000, of the first one."""
    cases, names = (["case_0001", "case_0002", "case_0003", last] for last in ("case_0005", "case_0099"))
    assert written_otherwise(cases, names) == {}
    assert written_otherwise(["P12_2019", "P13_2020"], ["P13_2020", "P12_2022"]) == {}


def write(path, ids, values):
    pd.DataFrame({"id": ids, "grade": values}).to_csv(path, index=False)
    return path


def load(path, cases):
    return load_table(path, np.array(cases), np.zeros((len(cases), 2)), "grade", "regression")


def test_a_spreadsheet_that_ate_the_zeros_is_refused(tmp_path):
    """01 to 12 became 1 to 12: three of the twelve still match."""
    cases = [f"{n:02d}" for n in range(1, 13)]
    path = write(tmp_path / "t.csv", [str(n) for n in range(1, 13)], range(12))
    with refused(InputError, case="01", path=path, value="1"):
        load(path, cases)


def test_cases_that_are_in_no_row_are_counted_with_the_rows_that_are_no_case(tmp_path, caplog):
    path = write(tmp_path / "t.csv", ["a", "b", "c", "x", "y"], [1, 2, 3, 4, 5])
    data = load(path, ["a", "b", "c", "d"])
    assert data.cases.tolist() == ["a", "b", "c"]
    assert "1 of 4 cases with features have no 'grade'" in caplog.text and "left out: d." in caplog.text
    assert "2 rows of" in caplog.text and "are of no case with features: x, y." in caplog.text


def test_rows_of_no_case_are_told_where_every_case_has_its_row_too(tmp_path, caplog):
    load(write(tmp_path / "t.csv", ["a", "b", "x"], [1, 2, 3]), ["a", "b"])
    assert "1 row of" in caplog.text and "no case with features: x." in caplog.text and "left out" not in caplog.text


def test_a_case_without_a_value_is_no_matter_of_spelling(tmp_path):
    path = write(tmp_path / "t.csv", ["s1", "s2", "s3", "S4"], [1, 2, None, 4])
    assert load(path, ["s1", "s2", "s3"]).cases.tolist() == ["s1", "s2"]
