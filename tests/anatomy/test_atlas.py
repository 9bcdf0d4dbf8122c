"""Preparing an atlas: what is registered, kept, tried again and told."""

import dataclasses

import numpy as np
import pytest
from support.refused import refused
from support.small_datasets import ball, replace_image, write_preprocessed

from nnunet_alice.anatomy.atlas import PreparedAtlas, prepare_atlas
from nnunet_alice.anatomy.atlas_files import AtlasFiles
from nnunet_alice.anatomy.deformation import deform
from nnunet_alice.anatomy.geometry import load_geometry
from nnunet_alice.anatomy.registration import assess
from nnunet_alice.dataset import PreprocessedDataset
from nnunet_alice.errors import InputError, NotPreparedError
from nnunet_alice.files import file_checksum
from nnunet_alice.matching.atlas import AtlasMatcher
from nnunet_alice.matching.invalidation import invalidate_case
from nnunet_alice.matching.registry import open_matcher


@pytest.fixture
def balls(tmp_path, monkeypatch):
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path))
    sizes = {"a": 14, "b": 15, "c": 16}
    images = {case: ball((20, 20, 20), (2.0, 2.0, 2.0), size) for case, size in sizes.items()}
    return write_preprocessed(tmp_path, images, (2.0, 2.0, 2.0))


@pytest.fixture
def registered(monkeypatch) -> list[str]:
    """Cases in the order in which they are registered from now on, quickly: the balls lie over each other anyway."""
    names = []

    def quick(case, atlas):
        names.append(case.case)
        return assess(np.eye(4), case, atlas)

    monkeypatch.setattr("nnunet_alice.anatomy.atlas.register", quick)
    return names


def test_running_again_does_only_what_is_missing(balls, registered):
    files = AtlasFiles(balls)
    first = prepare_atlas(balls, 1, atlas_case="b")
    assert sorted(registered) == ["a", "b", "c"]
    registered.clear()
    # Without a name the atlas stays what it was.
    assert prepare_atlas(balls, 1).records == first.records
    assert registered == []
    files.case_file("a").unlink()
    files.case_file("c").write_text("{")
    assert prepare_atlas(balls, 1).atlas_case == "b"
    assert registered == ["a", "c"]
    registered.clear()
    files.deformation_file("a").unlink()
    prepare_atlas(balls, 1)
    assert registered == ["a"]


def test_a_deformation_is_read_as_it_was_written(balls, registered):
    prepare_atlas(balls, 1, atlas_case="b")
    atlas, matcher = PreparedAtlas.open(balls), AtlasMatcher(balls)
    expected = deform(atlas.affine("a"), load_geometry(balls, "a"), atlas.geometry)
    for found in (atlas.deformation("a"), matcher.deformation("a")):
        np.testing.assert_array_equal(found.displacement_mm, expected.displacement_mm)
        assert (found.origin_mm, found.step_mm) == (expected.origin_mm, expected.step_mm)
    file = atlas.files.deformation_file("a")
    file.write_bytes(file.read_bytes()[:100])
    for read in (atlas.deformation, AtlasMatcher(balls).open):  # the matcher, so that views leave the case out
        with refused(NotPreparedError, path=file, case="a"):
            read("a")


def test_plans_that_share_preprocessed_cases_share_the_registrations(balls, registered):
    prepare_atlas(balls, 1, atlas_case="b")
    (balls.base / "OtherPlans.json").write_bytes((balls.base / "nnUNetPlans.json").read_bytes())
    other = PreprocessedDataset(balls.name, "OtherPlans", balls.configuration)
    registered.clear()
    assert AtlasMatcher(other).atlas.geometry.case == prepare_atlas(other, 1).atlas_case == "b"
    assert registered == [] and AtlasMatcher(balls).cases == AtlasMatcher(other).cases


def test_another_atlas_and_overwrite_register_all_again(balls, registered):
    prepare_atlas(balls, 1, atlas_case="b")
    registered.clear()
    assert prepare_atlas(balls, 1, atlas_case="c").fingerprint["atlas_case"] == "c"
    assert registered == ["a", "b", "c"]
    registered.clear()
    prepare_atlas(balls, 1, overwrite=True)
    assert registered == ["a", "b", "c"]


def test_no_deformation_lies_under_the_record_of_a_different_atlas(balls, registered, monkeypatch):
    """Killed between the two files."""
    prepare_atlas(balls, 1, atlas_case="b")
    write_record = AtlasFiles.write_record

    def killed(files, record, *rest):
        if record.case == "a":
            raise KeyboardInterrupt
        write_record(files, record, *rest)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(AtlasFiles, "write_record", killed)
        prepare_atlas(balls, 1, atlas_case="c")
    registered.clear()
    prepare_atlas(balls, 1, atlas_case="b")
    assert "a" in registered


def test_failed_cases_are_tried_again(balls, registered, monkeypatch):
    def failing(case, atlas):
        if case.case == "a":
            raise MemoryError("too little")
        return assess(np.eye(4), case, atlas)

    with monkeypatch.context() as patch:
        patch.setattr("nnunet_alice.anatomy.atlas.register", failing)
        report = prepare_atlas(balls, 1, atlas_case="b")
    assert report.records["a"].status == "failed"
    assert "not enough memory" in report.records["a"].reason
    assert prepare_atlas(balls, 1).records["a"].status == "ok"
    assert registered == ["a"]


def test_an_atlas_that_fits_few_cases_says_so_and_so_does_what_matches_by_it(balls, monkeypatch, caplog):
    images = {case: ball((20, 20, 20), (2.0, 2.0, 2.0), 15, seed) for seed, case in enumerate("defg")}
    dataset = write_preprocessed(balls.base.parent, images, balls.spacing)
    good = {"a", "b", "c"}

    def poor(case, atlas):
        found = assess(np.eye(4), case, atlas)
        return found if case.case in good else dataclasses.replace(found, correlation=0.1)

    monkeypatch.setattr("nnunet_alice.anatomy.atlas.register", poor)
    report = prepare_atlas(dataset, 1, atlas_case="b")
    assert "Only 3 of 7 cases (43%)" in report.shortfall and "--atlas CASE" in report.shortfall
    assert report.shortfall in caplog.text
    caplog.clear()
    assert len(AtlasMatcher(dataset).cases) == 3 and report.shortfall in caplog.text
    good.add("d")
    caplog.clear()
    assert not prepare_atlas(dataset, 1, atlas_case="b", overwrite=True).shortfall and not caplog.text


def test_a_failure_here_leaves_what_another_machine_registered_meanwhile(balls, registered, monkeypatch):
    fingerprints = []

    def meet(case, atlas):
        if case.case == "a" and not fingerprints:
            fingerprints.append(AtlasFiles(balls).fingerprint("b"))
            prepare_atlas(balls, 1)
            raise MemoryError("too little")
        return assess(np.eye(4), case, atlas)

    monkeypatch.setattr("nnunet_alice.anatomy.atlas.register", meet)
    assert prepare_atlas(balls, 1, atlas_case="b").records["a"].status == "ok"
    assert AtlasFiles(balls).read_record("a", fingerprints[0]).status == "ok"
    assert "a" in AtlasMatcher(balls).cases


def test_an_image_that_cannot_be_opened_costs_no_other_case(balls, registered, monkeypatch):
    prepare_atlas(balls, 1, atlas_case="b")

    def refused(path):
        if path.name.startswith("a."):
            raise PermissionError(13, "Permission denied", str(path))
        return file_checksum(path)

    monkeypatch.setattr("nnunet_alice.dataset.file_checksum", refused)
    assert list(AtlasMatcher(balls).cases) == ["b", "c"]
    assert prepare_atlas(balls, 1).records["a"].status == "failed"


def test_an_unfinished_change_of_the_atlas_counts_as_nothing_prepared(balls, registered):
    prepare_atlas(balls, 1, atlas_case="b")
    AtlasMatcher(balls)
    AtlasFiles(balls).write_atlas("c", (2.0, 2.0, 2.0), "body")
    with refused(NotPreparedError, path=balls.folder, command="anatomy -d 900 -p nnUNetPlans -c 3d_fullres"):
        AtlasMatcher(balls)


def test_a_case_that_came_later_is_left_out_with_a_warning(balls, registered, caplog):
    prepare_atlas(balls, 1, atlas_case="b")
    images = {"new": ball((20, 20, 20), (2.0, 2.0, 2.0), 15)}
    grown = write_preprocessed(balls.base.parent, images, (2.0, 2.0, 2.0))
    assert AtlasMatcher(grown).cases == ("a", "b", "c")
    assert "1 of 4 cases are not registered" in caplog.text


def test_a_case_that_was_preprocessed_again_is_left_out_and_registered_anew(balls, registered, caplog):
    prepare_atlas(balls, 1, atlas_case="b")
    replace_image(balls, "a", balls.image("a")[...] * 1.5)
    assert AtlasMatcher(balls).cases == ("b", "c")
    assert "1 of 3 cases (a) are missing, damaged or of other images" in caplog.text
    assert "nnunet_alice anatomy -d 900" in caplog.text
    registered.clear()
    prepare_atlas(balls, 1)
    assert registered == ["a"] and AtlasMatcher(balls).cases == ("a", "b", "c")


def test_an_atlas_that_was_preprocessed_again_is_another_atlas(balls, registered):
    prepare_atlas(balls, 1, atlas_case="b")
    replace_image(balls, "b", balls.image("b")[...] * 1.5)
    with refused(NotPreparedError, path=balls.folder):
        AtlasMatcher(balls)
    registered.clear()
    prepare_atlas(balls, 1, atlas_case="b")
    assert sorted(registered) == ["a", "b", "c"]


@pytest.fixture
def prepared(balls, registered):
    """Three balls registered to b."""
    prepare_atlas(balls, 1, atlas_case="b")
    registered.clear()
    return balls


def test_an_atlas_is_kept_and_continued(prepared, registered):
    balls = prepared
    assert AtlasMatcher(balls).cases == ("a", "b", "c")
    prepare_atlas(balls, 1)
    assert registered == []
    AtlasFiles(balls).case_file("a").unlink()
    prepare_atlas(balls, 1)
    assert registered == ["a"] and AtlasMatcher(balls).cases == ("a", "b", "c")


def test_a_registration_goes_with_its_geometry(prepared, registered):
    """Whoever asks for the geometry of a changed case first has it computed anew; its registration is old still."""
    balls = prepared
    replace_image(balls, "a", ball((20, 20, 24), (2.0, 2.0, 2.0), 14))
    load_geometry(balls, "a")
    assert AtlasMatcher(balls).cases == ("b", "c")
    prepare_atlas(balls, 1)
    assert registered == ["a"]


def test_a_forgotten_case_is_registered_again_and_a_forgotten_atlas_counts_no_more(prepared, registered):
    balls = prepared
    invalidate_case(balls, "a")
    prepare_atlas(balls, 1)
    assert registered == ["a"]
    registered.clear()
    invalidate_case(balls, "b")
    assert AtlasFiles(balls).read_report() is None
    prepare_atlas(balls, 1, atlas_case="b")
    assert registered == ["b"]  # of the same image: what was registered to it before still fits


def test_bad_arguments_get_one_sentence(balls, tmp_path, monkeypatch):
    with refused(InputError, case="nobody", option="--atlas"):
        prepare_atlas(balls, 1, atlas_case="nobody")
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "one"))
    image = ball((20, 20, 20), (2.0, 2.0, 2.0), 14)
    with refused(InputError, value=1):
        prepare_atlas(write_preprocessed(tmp_path / "one", {"a": image}, (2.0, 2.0, 2.0)), 1)
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "flat"))
    with refused(InputError, option="-c"):
        prepare_atlas(write_preprocessed(tmp_path / "flat", {"a": image, "b": image}, (2.0, 2.0)), 1)


def test_the_provider_opens_what_was_prepared(balls, registered):
    with refused(NotPreparedError, command="nnunet_alice anatomy -d 900 -p nnUNetPlans -c 3d_fullres"):
        open_matcher(balls)
    prepare_atlas(balls, 1)
    matcher = open_matcher(balls)
    assert matcher.name == "atlas" and matcher.cases == ("a", "b", "c")
