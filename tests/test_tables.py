"""CSV tables as people write them: blanks, empty cells, and names that look like none."""

import pytest
from support.refused import refused

from nnunet_alice.errors import InputError
from nnunet_alice.files import read_table


def read(folder, content):
    (folder / "t.csv").write_text(content)
    return read_table(folder / "t.csv")


def test_cells_are_text_without_the_blanks_around(tmp_path):
    table = read(tmp_path, 'case, age \nc0,007\nc1 , 41\n"c 2 ","4,2"\n')
    assert table.to_dict("list") == {"case": ["c0", "c1", "c 2"], "age": ["007", "41", "4,2"]}


@pytest.mark.parametrize("cell", ["", "  ", '""', "NA", " N/A", "#N/A", "NaN"])
def test_cells_without_a_value_are_missing(tmp_path, cell):
    table = read(tmp_path, f"case,grade,site\nc0,{cell},x\n,{cell},\n")
    assert table["grade"].isna().all() and table["case"].isna().tolist() == [False, True]


@pytest.mark.parametrize("name", ["None", "none", "null", "NULL"])
def test_a_class_may_be_called_none(tmp_path, name):
    assert read(tmp_path, f"case,grade\nc0,{name}\n")["grade"].tolist() == [name]


def test_a_table_may_have_no_row_and_short_rows(tmp_path):
    assert list(read(tmp_path, "case, age\n").columns) == ["case", "age"]
    assert read(tmp_path, "case,age\nc0\n")["age"].isna().all()


@pytest.mark.parametrize("names", ["age,age ", "age,age"])
def test_two_columns_of_one_name_are_refused(tmp_path, names):
    with refused(InputError, path="t.csv", column="age"):
        read(tmp_path, f"case,{names}\nc0,1,2\n")


@pytest.mark.parametrize("content", ["case,age\nc0,41,\n", "case,age\nc0,4,2\n", "case;age\nc0;4,2\n"])
def test_rows_with_a_cell_too_many_are_refused(tmp_path, content):
    """They would move every column by one."""
    with refused(InputError, path="t.csv"):
        read(tmp_path, content)


@pytest.mark.parametrize(("sign", "name"), [(";", "semicolons"), ("\t", "tabs")])
def test_a_table_without_commas_is_told_by_what_it_has(tmp_path, sign, name):
    for content in (f"case{sign}age\nc0{sign}4,2\n", f"case{sign}age\nc0{sign}42\n", f"case{sign}age\n"):
        with refused(InputError, path="t.csv") as caught:
            read(tmp_path, content)
        assert name in str(caught.value)
    assert list(read(tmp_path, f"case,age{sign}years\nc0,41\n").columns) == ["case", f"age{sign}years"]


def test_a_spreadsheet_marks_its_text_and_leaves_empty_columns(tmp_path):
    table = read(tmp_path, '\ufeff"case",age,,\r\n"c0","4,2",,\r\n')
    assert table[["case", "age"]].to_dict("list") == {"case": ["c0"], "age": ["4,2"]} and table.shape == (1, 4)
