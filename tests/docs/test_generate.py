"""Generated parts of the pages: current, and made as they should be."""

import generate
import pandas as pd
import pytest
import result_tables


@pytest.mark.slow
def test_pages_are_current():
    stale = [path.name for path in generate.stale_pages()]
    assert not stale, f"run: python docs/generate.py ({', '.join(stale)})"


def test_only_the_part_between_the_marks_changes(tmp_path, monkeypatch):
    monkeypatch.setitem(generate.RENDERERS, "echo", lambda folder, *words, **named: f"{folder.name} {words} {named}")
    text = 'before\n<!-- generate: echo a "b c" key=d -->\nold\n<!-- end -->\nafter\n'
    new = generate.refreshed(text, tmp_path)
    made = f"{tmp_path.name} ('a', 'b c') {{'key': 'd'}}"
    assert new == f'before\n<!-- generate: echo a "b c" key=d -->\n\n{made}\n\n<!-- end -->\nafter\n'
    assert generate.refreshed(new, tmp_path) == new


def test_an_unknown_part_is_an_error(tmp_path):
    with pytest.raises(KeyError):
        generate.refreshed("<!-- generate: nothing -->\n<!-- end -->", tmp_path)


@pytest.fixture
def folder(tmp_path):
    """Two summaries (2 and 6 runs) and a table of cases of two runs."""
    for name, mean, runs in (("a", 0.2, 2), ("b", 0.6, 6)):
        row = {"labels": 3, "percent": 100, "class": "mean", "metric": "dice", "arm": "x", "mean": mean, "runs": runs}
        pd.DataFrame([row, row | {"metric": "hd95_mm", "mean": 99.0}]).to_csv(tmp_path / f"{name}.csv", index=False)
    run = {"arm": "x", "checkpoint": 0, "partition": "fixed", "labels": 3, "seed": 0, "percent": 100}
    cases = [
        run | {"draw": d, "case": c, "class": "mean", "dice": v} for d, c, v in ((0, 1, 0.1), (0, 2, 0.3), (1, 1, 0.8))
    ]
    pd.DataFrame(cases).to_csv(tmp_path / "cases.csv.gz", index=False)
    return tmp_path


def test_arms_are_averaged_by_their_runs(folder):
    table = result_tables.means(folder, "both: a.csv:x b.csv:x", "first: a.csv:x")
    assert table.splitlines()[-1] == "| 3 | 100 | 0.500 | 0.200 |"


def test_cases_are_averaged_run_by_run(folder):
    assert result_tables.means(folder, "runs: cases.csv.gz:x").splitlines()[-1] == "| 3 | 100 | 0.500 |"


def test_shares_and_labels_are_selected(folder):
    assert len(result_tables.means(folder, "first: a.csv:x", labels="5").splitlines()) == 2


def test_rows_of_a_file_are_selected(tmp_path):
    (tmp_path / "t.csv").write_text("kind,name,value,note\na,x,0.10,\na,x,0.20,\nb,y,0.30,b\n")
    assert result_tables.data(tmp_path, "t.csv", where="kind:a", last_of="name").splitlines() == [
        "| name | value |",
        "| --- | --- |",
        "| x | 0.20 |",
    ]


def test_arms_are_compared_on_the_same_draws_of_the_chosen_folds(tmp_path):
    rows = ["set,arm,fold,seed,labels,draw,dice"]
    rows += [f"x,scratch,0,0,1,{draw},{dice}" for draw, dice in enumerate((0.1, 0.3, 0.5))]
    rows += [f"x,mine,0,0,1,{draw},{dice}" for draw, dice in enumerate((0.2, 0.5))]
    rows += ["x,scratch,1,0,1,0,0.9", "x,mine,1,0,1,0,0.0", "x,other,0,0,1,0,0.7"]
    (tmp_path / "log.csv").write_text("\n".join(rows))
    *_, scratch, mine = result_tables.arms(tmp_path, "log.csv", folds="0", only="mine").splitlines()
    assert [cell.strip() for cell in scratch.strip("|").split("|")] == ["1", "scratch", "0.300", "", ""]
    assert [cell.strip() for cell in mine.strip("|").split("|")] == [
        "1",
        "mine",
        "0.350",
        "+15.0 (-48.5 to 78.5)",
        "2 of 2",
    ]


def test_targets_say_whether_intervals_are_apart(tmp_path):
    head = "labels,metric,seeds,subjects,arm,value,low,high,gain,gain_low,gain_high"
    rows = ["20,r2,3,75,scratch,0.1,0.0,0.2,,,", "20,r2,3,75,mine_20epochs_lr3e-2_seed1,0.4,0.3,0.5,0.3,0.1,0.4",
            "20,r2,3,75,probe mine,0.2,0.1,0.3,0.1,-0.1,0.2",
            "20,mae,3,75,scratch,7,6,8,,,", "20,mae,3,75,mine,5,4,6.5,2,1,3"]  # fmt: skip
    (tmp_path / "table.csv").write_text("\n".join([head, *rows]))
    lines = result_tables.targets(tmp_path, "table.csv").splitlines()
    assert lines[2] == "| 20 | age, R2 | scratch | 0.10 (0.00 to 0.20) |  |"
    assert lines[3] == "| 20 | age, R2 | mine | 0.40 (0.30 to 0.50) | +0.30 (0.10 to 0.40) |"
    assert lines[-1].endswith("Missed: apart in 1 of 2; the difference's interval lies above zero in 2.")
    (tmp_path / "table.csv").write_text("\n".join([head, *rows[:3], rows[3], rows[4].replace("6.5", "5.5")]))
    assert "Reached: apart in 2 of 2;" in result_tables.targets(tmp_path, "table.csv")


def test_seeds_end_with_their_mean_and_what_was_wanted(tmp_path):
    rows = ["seed,pretrained,from_scratch,gain,seconds", "0,0.8,0.6,0.2,900", "1,0.5,0.6,-0.1,900"]
    (tmp_path / "seeds.csv").write_text("\n".join(rows))
    lines = result_tables.seeds(tmp_path, "seeds.csv").splitlines()
    assert lines[2:5] == [
        "| 0 | 0.800 | 0.600 | +20.0 | 900 |",
        "| 1 | 0.500 | 0.600 | -10.0 | 900 |",
        "| mean of 2 | 0.650 | 0.600 | +5.0 | 900 |",
    ]
    assert lines[-1].endswith("Not decided yet: above in 1 of 2.")
    for above, verdict in ((9, "Reached: above in 9 of 10."), (8, "Missed: above in 8 of 10.")):
        seeds = [f"{seed}{row[1:]}" for seed, row in enumerate([rows[1]] * above + [rows[2]] * (10 - above))]
        (tmp_path / "seeds.csv").write_text("\n".join([rows[0], *seeds]))
        assert result_tables.seeds(tmp_path, "seeds.csv").endswith(verdict)
