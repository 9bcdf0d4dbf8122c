"""Probes on patches and their maps: right points, no patient in two folds, geometry of any file."""

from functools import partial

import numpy as np
import pytest
import SimpleITK as sitk
from support.refused import refused

from nnunet_alice.affine import Affine
from nnunet_alice.anatomy.atlas import Atlas
from nnunet_alice.anatomy.geometry import CaseGeometry, compute_geometry
from nnunet_alice.anatomy.landmarks import Landmarks
from nnunet_alice.anatomy.world import file_grid, world_affine
from nnunet_alice.cropping import crop_bounds
from nnunet_alice.errors import InputError, MissingFileError, NotPreparedError
from nnunet_alice.features.extraction import encode_patches, locations_of
from nnunet_alice.features.maps import DenseMap, dense_map, write_maps
from nnunet_alice.features.patch_labels import PatchLabels, read_patch_table, sample_label_images
from nnunet_alice.features.patches import probe_patches
from nnunet_alice.pictures.maps import draw_maps

SPACING, SHAPE = (4.0, 2.0, 3.0), (18, 30, 22)
OBLIQUE = (0.98, -0.199, 0, 0.199, 0.98, 0, 0, 0, 1)
LAS = (-1, 0, 0, 0, 1, 0, 0, 0, 1)


def properties(direction=OBLIQUE) -> dict:
    """What nnU-Net keeps of a file of (z, y, x) 20 x 64 x 24 voxels that it transposed by (0, 2, 1) and cropped."""
    return {
        "sitk_stuff": {"spacing": (2.9, 1.0, 4.1), "origin": (-30.0, 12.0, 70.0), "direction": direction},
        "shape_before_cropping": (20, 24, 64),
        "bbox_used_for_cropping": [[1, 19], [2, 22], [1, 61]],
        "shape_after_cropping_and_before_resampling": (18, 20, 60),
    }


class Case:
    """An opened image: a body of noise around a bright half."""

    def __init__(self, name: str, direction=OBLIQUE, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        image = rng.normal(scale=0.1, size=(1, *SHAPE)).astype(np.float32)
        image[0, :, 15:] += 1
        self.image = image
        self.geometry: CaseGeometry = compute_geometry(name, image, SPACING)
        self.world_affine = partial(world_affine, properties(direction), (0, 2, 1), SHAPE)
        self.file_grid = partial(file_grid, properties(direction), (0, 2, 1))

    def known_affine(self, atlas: Atlas) -> np.ndarray:
        return np.eye(4)


class Encoder:
    """Features of a patch: its mean, its deviation, noise of its own, and where it lies."""

    spacing, size = SPACING, (2, 4, 4)

    def __init__(self) -> None:
        grid = np.stack(np.meshgrid([20, 40], [16, 32], [18, 36], indexing="ij"), axis=-1).reshape(-1, 3)
        self.landmarks = Landmarks(grid.astype(float), SHAPE, SPACING, 16.0, 18.0)
        self.needed_atlas = Atlas(Case("atlas").geometry)

    def features(self, patches, locations) -> np.ndarray:
        values = patches.flatten(1)
        return np.column_stack([values.mean(dim=1), values.std(dim=1), locations]).astype(np.float32)


class Images:
    def __init__(self, count: int) -> None:
        self.cases = [f"c{number}" for number in range(count)]

    def open(self, case: str) -> Case:
        if case == "c3":
            raise InputError("Case c3 is broken.")
        return Case(case, seed=int(case[1:]))


def labelled(cases, points_vox_of, labels, groups=None) -> PatchLabels:
    """Points given as voxels of preprocessed arrays, in world mm."""
    points = np.concatenate([Case(case).world_affine().points(points_vox_of[case]) for case in dict.fromkeys(cases)])
    cases = np.array(cases)
    return PatchLabels(cases, points, True, np.array(labels), cases if groups is None else np.array(groups))


@pytest.fixture(scope="module")
def fitted():
    """Dark and bright patches of eight cases, six of them readable and labelled."""
    rng = np.random.default_rng(0)
    images, points, cases, labels = Images(8), {}, [], []
    for case in images.cases[:7]:
        y = np.r_[rng.integers(3, 10, 6), rng.integers(18, 27, 6)]
        found = np.column_stack([rng.integers(2, 16, 12), y, rng.integers(3, 19, 12)])
        points[case] = found.astype(float)
        cases += [case] * 12
        labels += ["dark"] * 6 + ["bright"] * 6
    return images, points, probe_patches(Encoder(), images, labelled(cases, points, labels), "classification", folds=2)


def test_patches_are_those_at_the_points_and_cases_are_never_split(fitted):
    _, points, found = fitted
    table = found.result.predictions
    assert set(table["case"]) == {f"c{number}" for number in (0, 1, 2, 4, 5, 6)} and found.classes == ("bright", "dark")
    assert list(found.failed) == ["c3"] and "broken" in found.failed["c3"]
    assert (table.groupby("case")["fold"].nunique() == 1).all()
    for case, rows in table.groupby("case"):
        np.testing.assert_allclose(rows[["z_vox", "y_vox", "x_vox"]], points[case], atol=0.01)
    opened = Case("c1", seed=1)
    expected = Encoder().features(*patches_at(opened, points["c1"]))
    np.testing.assert_allclose(found.data.features[table["case"] == "c1"], expected, rtol=1e-5)
    assert found.result.metrics.set_index("metric").loc["auc", "value"] > 0.95


def patches_at(opened, points_vox):
    """Crops and locations, one by one."""
    import torch

    encoder = Encoder()
    crops = []
    for point in points_vox:
        low = crop_bounds(point, encoder.size)
        index = [np.clip(np.arange(a, a + n), 0, end - 1) for a, n, end in zip(low, encoder.size, SHAPE, strict=True)]
        crops.append(opened.image[(slice(None), *np.ix_(*index))])
    return torch.from_numpy(np.stack(crops)), locations_of(encoder, np.eye(4), points_vox)


@pytest.mark.parametrize("case", ["c1", "c7"])
def test_a_map_is_the_answer_patch_by_patch(fitted, case):
    """Of the model that held the case out; of a case without labels, one of all labels."""
    images, _, found = fitted
    opened = images.open(case)
    made = dense_map(Encoder(), opened, found, step_mm=8.0, region="body")
    assert made.values.shape == (2, *made.inside.shape) and made.inside.any()
    np.testing.assert_allclose(made.values.sum(axis=0), made.inside, atol=1e-5)
    rows = np.argwhere(made.inside)
    points = made.first_vox + rows * made.step_vox
    model = found.model_for(case)
    if case == "c1":
        fold = found.result.predictions.set_index("case").loc["c1", "fold"].iloc[0]
        assert model is found.result.models[fold]
    else:
        assert all(model is not other for other in found.result.models)
    expected = model.predict_proba(Encoder().features(*patches_at(opened, points)).astype(float))
    np.testing.assert_allclose(made.values[(slice(None), *rows.T)].T, expected, atol=1e-5)
    # On the preprocessed array itself, grid points keep their very answers.
    whole = made.on(Affine(np.eye(4)), SHAPE, 1)
    at = np.round(points).astype(int)
    np.testing.assert_allclose(whole[tuple(at.T)], made.values[(1, *rows.T)], atol=1e-5)


class Places:
    """A probe whose answers are the location itself: maps must lie where they say."""

    classes = ("z", "y", "x")

    def model_for(self, case):
        return None

    def answers(self, model, features):
        return features[:, 2:] + 3


@pytest.mark.parametrize("direction", [OBLIQUE, LAS, (0, -1, 0, 1, 0, 0, 0, 0, -1)])
def test_maps_lie_where_the_image_lies(tmp_path, direction):
    opened, encoder = Case("person", direction), Encoder()
    made = dense_map(encoder, opened, Places(), step_mm=6.0, region="body")
    made = type(made)(made.values, np.ones_like(made.inside), made.first_vox, made.step_vox)
    everywhere = np.stack(np.meshgrid(*map(np.arange, made.inside.shape), indexing="ij"), axis=-1).reshape(-1, 3)
    points = made.first_vox + everywhere * made.step_vox
    made.values[:] = (locations_of(encoder, np.eye(4), points) + 3).T.reshape(made.values.shape)
    paths = write_maps(tmp_path, opened, made, Places.classes)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"person_{name}.nii.gz" for name in "xyz"]
    for axis, name in enumerate(Places.classes):
        image = sitk.ReadImage(str(paths[name]))
        assert image.GetSize() == (24, 64, 20)
        found = (image.GetSpacing(), image.GetOrigin(), image.GetDirection())
        for ours, theirs in zip(found, properties(direction)["sitk_stuff"].values(), strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-5)
        array = sitk.GetArrayFromImage(image)
        for z, y, x in [(6, 20, 8), (10, 40, 12), (14, 30, 16), (9, 33, 10)]:
            world = image.TransformIndexToPhysicalPoint((x, y, z))
            vox = np.linalg.solve(opened.world_affine(), [*world, 1])[:3]
            assert ((vox > made.first_vox) & (vox < np.array(SHAPE) - 1 - made.first_vox)).all()
            np.testing.assert_allclose(
                array[z, y, x], locations_of(encoder, np.eye(4), vox[None])[0, axis] + 3, atol=2e-3
            )


def test_classes_whose_names_become_the_same_keep_a_map_each(tmp_path):
    opened, classes = Case("person"), ("<6 mm", ">6 mm", "_6_mm_0")
    values = np.stack([np.full(SHAPE, number, dtype=np.float32) for number in (1, 2, 3)])
    paths = write_maps(tmp_path, opened, DenseMap(values, np.ones(SHAPE, dtype=bool), np.zeros(3), np.ones(3)), classes)
    for number, name in enumerate(classes):
        assert sitk.GetArrayFromImage(sitk.ReadImage(str(paths[name]))).max() == number + 1


def test_regions(fitted):
    images, _, found = fitted
    opened, encoder = images.open("c1"), Encoder()
    made = dense_map(encoder, opened, found, step_mm=4.0)
    rows = np.argwhere(np.ones_like(made.inside))
    points_mm = (made.first_vox + rows * made.step_vox) * SPACING
    near = (np.abs(points_mm[:, None] - encoder.landmarks.points_mm).max(axis=2) <= 8).any(axis=1)
    np.testing.assert_array_equal(made.inside.ravel(), near)
    with refused(InputError, value="0.00"):
        dense_map(encoder, opened, found, step_mm=4.0, region="lungs")
    encoder.landmarks = None
    with refused(NotPreparedError):
        dense_map(encoder, opened, found, step_mm=4.0)


@pytest.mark.slow
def test_a_regression_maps_its_values(tmp_path, real_figures):
    rng, images = np.random.default_rng(1), Images(3)
    points = {case: rng.uniform((2, 3, 3), (15, 26, 18), (20, 3)) for case in images.cases}
    cases = np.repeat(images.cases, 20)
    labels = [f"{value:.3f}" for case in images.cases for value in points[case][:, 1]]
    found = probe_patches(
        Encoder(), images, labelled(cases.tolist(), points, labels, groups=[str(n) for n in range(60)]), "regression", 3
    )
    made = dense_map(Encoder(), images.open("c1"), found, step_mm=8.0)
    assert found.classes == ("value",) and made.values.shape[0] == 1
    y = (made.first_vox + np.argwhere(made.inside) * made.step_vox)[:, 1]
    np.testing.assert_allclose(made.values[0][made.inside], y, atol=1)
    shown = made.on(Affine(np.eye(4)), SHAPE, 0, np.nan)[None]
    draw_maps(Case("c1").geometry, shown, found.classes, tmp_path / "map.png")
    assert (tmp_path / "map.png").stat().st_size > 5000


def test_tables_of_points_in_mm_and_in_voxels(tmp_path):
    table = tmp_path / "patches.csv"
    opened = Case("c1")
    vox = np.array([[4.0, 7, 9], [10, 20, 3]])
    world = opened.world_affine().points(vox)
    in_file = np.linalg.solve(opened.file_grid()[0], np.c_[world, [1, 1]].T).T[:, :3]
    table.write_text("case,x_mm,y_mm,z_mm,kind,who\n" + "".join(f"c1,{x},{y},{z},a,p\n" for x, y, z in world))
    by_mm = read_patch_table(table, "kind", group="who")
    table.write_text(
        "name,kind,x_vox,y_vox,z_vox\n" + "".join(f"c1,a,{x},{y},{z}\n" for z, y, x in in_file) + "c1,,1,1,1\n"
    )
    by_vox = read_patch_table(table, "kind", subject_of={"c1": "ann"})
    for found, group in ((by_mm, "p"), (by_vox, "ann")):
        np.testing.assert_allclose(found.points_vox(found.of_case("c1"), opened), vox, atol=1e-6)
        assert found.groups.tolist() == [group] * 2 and found.labels.tolist() == ["a"] * 2


@pytest.mark.parametrize(
    ("content", "kind", "fields"),
    [
        (None, MissingFileError, {}),
        ("case,x_mm,y_mm,kind\nc1,1,2,a\n", InputError, {"column": "x_vox"}),
        ("case,x_mm,y_mm,z_mm\nc1,1,2,3\n", InputError, {"column": "kind"}),
        ("case,x_mm,y_mm,z_mm,kind\nc1,1,2,,a\n", InputError, {"column": None, "case": None}),
        ("case,x_mm,y_mm,z_mm,kind\nc1,1,two,3,a\n", InputError, {"case": "c1"}),
    ],
)
def test_bad_tables(tmp_path, content, kind, fields):
    if content is not None:
        (tmp_path / "t.csv").write_text(content)
    with refused(kind, path="t.csv", **fields):
        read_patch_table(tmp_path / "t.csv", "kind")


def test_an_empty_group_splits_no_case(tmp_path):
    """c1 says so in its other row, c2 by its subject, ann, who is P1 elsewhere; nobody knows c3 and c4."""
    table = tmp_path / "patches.csv"
    cases = {"c0": "P0", "c1": "P1", "c2": "", "c3": "", "c4": " "}
    rows = [f"{case},1,2,3,a,{who}\n" for case, who in cases.items()] + ["c1,4,5,6,b,\n", "c3,4,5,6,b,\n"]
    table.write_text("case,x_mm,y_mm,z_mm,kind,who\n" + "".join(rows))
    found = read_patch_table(table, "kind", group="who", subject_of={"c1": "ann", "c2": "ann"})
    assert found.groups.tolist() == ["P0", "P1", "P1", "c3", "c4", "P1", "c3"]


def test_points_outside_are_named():
    far = PatchLabels(np.array(["c1"]), np.array([[900.0, 0, 0]]), True, np.array(["a"]), np.array(["c1"]))
    with refused(InputError, case="c1"):
        far.points_vox(np.array([0]), Case("c1"))
    with refused(InputError):
        probe_patches(Encoder(), Images(2), far, "classification")


def test_label_images_give_points_with_their_label(tmp_path):
    array = np.zeros((6, 8, 10), dtype=np.uint8)
    array[1:3, 2:5, 3:6], array[4, 6:, 8:] = 1, 7
    image = sitk.GetImageFromArray(array)
    image.SetSpacing((1.5, 2.0, 3.0)), image.SetDirection(LAS), image.SetOrigin((5, -6, 7))
    sitk.WriteImage(image, str(tmp_path / "c1.nii.gz"))
    found = sample_label_images(tmp_path, ["c0", "c1"], 5, seed=0, subject_of={"c1": "ann"})
    assert found.labels.tolist() == ["1"] * 5 + ["7"] * 4 and set(found.groups) == {"ann"} and found.in_mm
    for point, label in zip(found.points, found.labels, strict=True):
        assert array[image.TransformPhysicalPointToIndex(point.tolist())[::-1]] == int(label)
    again = sample_label_images(tmp_path, ["c0", "c1"], 5, seed=0)
    np.testing.assert_array_equal(again.points, found.points)
    with refused(InputError, case="c0", path=tmp_path):
        sample_label_images(tmp_path, ["c0"], 5, seed=0)


@pytest.mark.parametrize(
    ("kind", "values"),
    [(np.int32, (1_000_001, 1_000_002)), (np.float32, (7, 0.25)), (np.uint8, (1, 100)), (np.float64, (1234567.5, 3))],
)
def test_labels_are_told_apart_to_the_last_digit(tmp_path, kind, values):
    array = np.zeros((4, 5, 6), dtype=kind)
    array[0], array[2] = values
    sitk.WriteImage(sitk.GetImageFromArray(array), str(tmp_path / "c1.nii.gz"))
    assert set(sample_label_images(tmp_path, ["c1"], 3, seed=0).labels) == set(map(str, values))


def test_label_images_of_no_case_are_told_and_other_files_are_none(tmp_path, caplog):
    array = np.zeros((4, 5, 6), dtype=np.uint8)
    array[1:3] = 2
    for name in ("c1", "c1.x", "strange[1]"):
        sitk.WriteImage(sitk.GetImageFromArray(array), str(tmp_path / f"{name}.nii.gz"))
    (tmp_path / "c1.json").write_text("{}")  # before c1.nii.gz in the alphabet
    found = sample_label_images(tmp_path, ["c1", "strange[1]"], 3, seed=0)
    assert found.cases.tolist() == ["c1"] * 3 + ["strange[1]"] * 3
    assert "no image for 1 label image: c1.x." in caplog.text


def test_label_images_of_another_kind_are_refused(tmp_path):
    sitk.WriteImage(sitk.GetImageFromArray(np.ones((3, 4, 5, 2), np.uint8), isVector=True), str(tmp_path / "c1.nrrd"))
    with refused(InputError, path="c1.nrrd"):
        sample_label_images(tmp_path, ["c1"], 3, seed=0)


@pytest.mark.slow
def test_labels_and_images_that_do_not_meet_are_told(fitted, caplog):
    """A table that knows half of the images, and cases that are none."""
    _, points, _ = fitted
    caplog.set_level("INFO")
    rows = [case for case in ("c0", "c1") for _ in range(12)]
    known = labelled(rows, points, (["dark"] * 6 + ["bright"] * 6) * 2)
    cases, points_mm = np.append(known.cases, ["d1", "d2"]), np.vstack([known.points, np.zeros((2, 3))])
    groups = np.arange(len(cases)).astype(str)
    both = PatchLabels(cases, points_mm, True, np.append(known.labels, ["dark"] * 2), groups)
    found = probe_patches(Encoder(), Images(3), both, "classification", folds=2)
    assert set(found.data.cases) == {"c0", "c1"} and found.failed == {}
    assert "2 of 4 labelled cases have no image and are left out: d1, d2." in caplog.text
    assert "1 of 3 images have no label: c2." in caplog.text


def test_labels_under_another_spelling_are_refused(fitted):
    _, points, _ = fitted
    known = labelled(["c0"] * 12, points, ["dark"] * 6 + ["bright"] * 6)
    eaten = PatchLabels(np.array(["C00"] * 12), known.points, True, known.labels, known.groups)
    with refused(InputError, case="c0", value="C00"):
        probe_patches(Encoder(), Images(3), eaten, "classification", folds=2)


def test_one_class_only_is_one_sentence(fitted):
    images, points, _ = fitted
    cases = [case for case in images.cases[:3] for _ in range(12)]
    labels = labelled(cases, points, ["dark"] * 36, groups=[str(n) for n in range(36)])
    with refused(InputError, value="dark"):
        probe_patches(Encoder(), images, labels, "classification", folds=2)


def test_patches_are_encoded_a_few_at_a_time(fitted):
    _, points, _ = fitted
    opened = Case("c1", seed=1)
    patches, locations = patches_at(opened, points["c1"])
    found = encode_patches(Encoder(), opened.image, points["c1"], locations)
    np.testing.assert_allclose(found, Encoder().features(patches, locations), rtol=1e-6)
    with refused(InputError, option="points_vox"):
        encode_patches(Encoder(), opened.image, np.zeros((0, 3)), np.zeros((0, 3), np.float32))
