"""Which cases are of one subject: tables, patterns, and names that look like repeats."""

from types import SimpleNamespace

import pytest

from nnunet_alice.anatomy.subjects import likely_repeats, load_subjects, read_subjects, save_subjects
from nnunet_alice.errors import InputError

CASES = ["sub-1_ses-1", "sub-1_ses-2", "sub-2_ses-1"]
EXPECTED = {"sub-1_ses-1": "sub-1", "sub-1_ses-2": "sub-1", "sub-2_ses-1": "sub-2"}


def test_a_pattern_and_a_table_say_the_same(tmp_path):
    table = tmp_path / "subjects.csv"
    table.write_text("age,subject,case\n" + "\n".join(f"50,{s},{c}" for c, s in EXPECTED.items()) + "\n50,other,x\n")
    assert read_subjects(r"(sub-\d+)_", CASES) == read_subjects(table, CASES) == EXPECTED
    table.write_text("id,person\n" + "\n".join(f"{c},{s}" for c, s in EXPECTED.items()))
    assert read_subjects(table, CASES) == EXPECTED


def test_cases_that_nobody_names_are_left_out_with_a_warning(tmp_path, caplog):
    table = tmp_path / "subjects.csv"
    table.write_text("case,subject\nsub-1_ses-1,7\n")
    assert read_subjects(table, CASES) == {"sub-1_ses-1": "7"}
    assert "2 of 3 cases, e.g. sub-1_ses-2" in caplog.text


@pytest.mark.parametrize(
    ("source", "content"),
    [
        ("t.csv", None),
        ("t.csv", "case\na\n"),
        ("t.csv", "case,subject\nsub-1_ses-1,a\nsub-1_ses-1,b\n"),
        ("t.csv", "case,subject\nelse,a\n"),
        ("sub-(", None),
        ("sub", None),
        ("(s)(u)b", None),
        ("(nothing)", None),
    ],
)
def test_bad_sources(tmp_path, monkeypatch, source, content):
    monkeypatch.chdir(tmp_path)
    if content is not None:
        (tmp_path / source).write_text(content)
    with pytest.raises(InputError):
        read_subjects(source, CASES)


def test_they_are_kept_beside_the_anatomy(tmp_path):
    dataset = SimpleNamespace(anatomy_folder=tmp_path / "anatomy")
    assert load_subjects(dataset) == {}
    save_subjects(dataset, EXPECTED)
    assert load_subjects(dataset) == EXPECTED
    (tmp_path / "anatomy" / "subjects.json").write_text("[1]")
    with pytest.raises(InputError):
        load_subjects(dataset)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (CASES, ("sub-1_ses-1", "sub-1_ses-2")),
        (["P1_a", "P1_b", "P2_a", "P2_b"], ("P1_a", "P1_b")),
        (["x-1", "x-2", "y-1"], ("x-1", "x-2")),
        ([f"chest_{number:02d}" for number in range(30)], None),  # numbers of cases
        ([f"hippocampus_{number:03d}" for number in range(30)], None),
        ([f"{site}_{number}" for site in "AB" for number in range(20)], None),  # sites
        (["ann", "bob"], None),
    ],
)
def test_names_that_look_like_repeats(names, expected):
    assert likely_repeats(names) == expected
