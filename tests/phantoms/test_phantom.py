"""Phantoms: the truth they claim is the truth of the pictures they make."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
from scipy.ndimage import binary_erosion
from support.refused import refused

from nnunet_alice import phantoms as ph
from nnunet_alice.errors import InputError, MissingFileError

ORGANS = [name for name in ph.LABELS if name != "background"]


@pytest.fixture(scope="module")
def rendered() -> dict[int, tuple[ph.Subject, ph.Phantom]]:
    subjects = {seed: ph.make_subject(seed) for seed in (0, 1)}
    return {seed: (subject, ph.render(subject, 6.0)) for seed, subject in subjects.items()}


def test_same_seed_gives_the_same_bits_and_another_seed_does_not():
    first, again, other = (ph.render(ph.make_subject(seed), 16.0, (24, 20, 24)) for seed in (5, 5, 6))
    assert np.array_equal(first.image, again.image) and np.array_equal(first.labels, again.labels)
    assert np.abs(first.image - other.image).mean() > 20
    assert first.image.shape == (24, 20, 24) and first.image.dtype == np.float32 and first.labels.dtype == np.uint8


@pytest.mark.parametrize("size_scale", [1.0, 1.5])
def test_counterparts_return_to_where_they_came_from(size_scale):
    rng = np.random.default_rng(0)
    for seed in range(3):
        a, b = (ph.make_subject(s, size_scale=size_scale) for s in (seed, seed + 100))
        points = ph.sample_points(a, 300, rng)
        there = ph.corresponding_point(points, a, b)
        assert np.linalg.norm(there - points, axis=1).max() > 5, "the subjects hardly differ"
        np.testing.assert_allclose(ph.corresponding_point(there, b, a), points, atol=1e-4)


def test_deformations_never_fold():
    rng = np.random.default_rng(1)
    for seed in range(10):
        deformation = ph.make_subject(seed).deformation
        points = rng.uniform((-40, -160, -200), (460, 160, 200), (2000, 3))
        steps = 0.05 * np.eye(3)
        columns = [(deformation.to_canonical(points + s) - deformation.to_canonical(points - s)) / 0.1 for s in steps]
        assert np.linalg.det(np.stack(columns, axis=-1)).min() > 0.1


@pytest.mark.slow
def test_subjects_differ_by_more_than_an_affine_map():
    rng = np.random.default_rng(2)
    errors = []
    for seed in range(0, 8, 2):
        a, b = ph.make_subject(seed), ph.make_subject(seed + 1)
        points = ph.sample_points(a, 500, rng)
        truth = ph.corresponding_point(points, a, b)
        columns = np.c_[points, np.ones(len(points))]
        fitted = columns @ np.linalg.lstsq(columns, truth, rcond=None)[0]
        errors.append(np.linalg.norm(fitted - truth, axis=1))
    assert 5 < np.median(np.concatenate(errors)) < 20


def test_grid_map_equals_the_map_of_points():
    deformation = ph.make_subject(3).deformation
    axes = (np.linspace(-20, 400, 7), np.linspace(-120, 110, 6), np.linspace(-150, 160, 5))
    points = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
    np.testing.assert_allclose(deformation.to_canonical_grid(axes).T, deformation.to_canonical(points), atol=1e-3)


def test_pictures_show_the_same_organ_at_the_counterpart(rendered):
    """Interior voxels of one rendered volume, looked up in another rendered volume through the truth."""
    (a, image_a), (b, image_b) = rendered[0], rendered[1]
    checked, agreeing, same_place = 0, 0, 0
    for name in ORGANS:
        inside = binary_erosion(image_a.labels == ph.LABELS[name])
        points = image_a.to_mm(np.argwhere(inside))
        for found, target in ((True, ph.corresponding_point(points, a, b)), (False, points)):
            voxels = np.rint(image_b.to_voxels(target)).astype(int)
            seen = np.all((voxels >= 0) & (voxels < image_b.labels.shape), axis=1)
            hits = image_b.labels[tuple(voxels[seen].T)] == ph.LABELS[name]
            if found:
                checked, agreeing = checked + seen.sum(), agreeing + hits.sum()
            else:
                same_place += hits.sum()
    assert checked > 2000
    assert agreeing / checked > 0.95
    assert same_place / checked < 0.9, "the test would pass without any deformation"


def test_labels_at_points_are_the_labels_of_the_picture(rendered):
    subject, image = rendered[1]
    voxels = np.argwhere(image.body)[::37]
    labels, body = ph.labels_at(image.to_mm(voxels), subject)
    assert body.mean() > 0.999
    assert (labels == image.labels[tuple(voxels.T)]).mean() > 0.98
    np.testing.assert_allclose(image.to_voxels(image.to_mm(voxels)), voxels, atol=1e-9)


def test_a_torso_has_every_organ_in_place_and_in_its_range_of_hu(rendered):
    expected = {
        "lung_right": (-900, -700), "lung_left": (-900, -700), "heart": (90, 190), "aorta": (100, 200),
        "liver": (85, 130), "gallbladder": (-10, 45), "spleen": (90, 150), "pancreas": (70, 130),
        "kidney_right": (110, 210), "kidney_left": (110, 210), "spine": (130, 450), "ribs": (200, 700),
        "pelvis": (180, 500), "bladder": (-10, 40), "stomach": (-300, 80), "colon": (-700, 80),
    }  # fmt: skip
    for subject, image in rendered.values():
        centre = {}
        for name in ORGANS:
            where = image.labels == ph.LABELS[name]
            assert where.sum() >= 20, (subject.seed, name)
            low, high = expected[name]
            assert low < np.median(image.image[where]) < high, (subject.seed, name, np.median(image.image[where]))
            centre[name] = np.argwhere(where).mean(axis=0)
        assert image.body[image.labels > 0].all()
        outside = image.image[binary_erosion(~image.body, iterations=2)]
        assert np.median(outside) < -950
        # x runs to the patient's left, y to the back, z up
        assert centre["liver"][2] < centre["stomach"][2] < centre["spleen"][2]
        assert centre["spine"][1] > centre["aorta"][1] > centre["bladder"][1]
        assert centre["heart"][0] > centre["liver"][0] > centre["bladder"][0]


def test_fields_of_view_cut_what_they_say():
    for seed in range(2):
        whole, chest, belly = (ph.make_subject(seed, field_of_view=name) for name in ph.FIELDS_OF_VIEW)
        assert whole.deformation == chest.deformation == belly.deformation
        volumes = {s.field_of_view: np.bincount(ph.render(s, 8.0).labels.ravel(), minlength=17) for s in
                   (whole, chest, belly)}  # fmt: skip
        for gone in ("bladder", "pelvis", "colon"):
            assert volumes["chest"][ph.LABELS[gone]] <= 0.1 * volumes["torso"][ph.LABELS[gone]]
        lung, bladder, kidney = (ph.LABELS[name] for name in ("lung_left", "bladder", "kidney_left"))
        assert volumes["chest"][lung] > 0.7 * volumes["torso"][lung]
        assert volumes["abdomen_pelvis"][lung] < 0.4 * volumes["torso"][lung]
        assert volumes["abdomen_pelvis"][bladder] > 0.8 * volumes["torso"][bladder]
        assert volumes["abdomen_pelvis"][kidney] > 0.8 * volumes["torso"][kidney]
        points = ph.sample_points(chest, 50, np.random.default_rng(0))
        assert chest.sees(points).all() and not belly.sees(points).all()


def test_cuts_and_margins_vary_between_subjects():
    bottoms = [ph.make_subject(s, field_of_view="chest").field_low_mm[0] for s in range(12)]
    shapes = {ph.render(ph.make_subject(s), 16.0).image.shape for s in range(6)}
    assert np.std(bottoms) > 6 and len(shapes) > 2


@pytest.mark.parametrize(("kind", "organ"), [("emphysema", "lung_left"), ("fatty_liver", "liver")])
def test_diffuse_disease_darkens_its_organ_with_severity(kind, organ):
    means, spleens = [], []
    for severity in (0.0, 0.3, 0.6, 1.0):
        image = ph.render(ph.make_subject(4, disease=kind, severity=severity), 8.0)
        means.append(image.image[image.labels == ph.LABELS[organ]].mean())
        spleens.append(image.image[image.labels == ph.LABELS["spleen"]].mean())
    healthy = ph.render(ph.make_subject(4), 8.0)
    assert means[0] == pytest.approx(healthy.image[healthy.labels == ph.LABELS[organ]].mean(), abs=1e-3)
    assert np.all(np.diff(means) < -10)
    assert np.ptp(spleens) < 1


@pytest.mark.slow
def test_lesions_change_more_of_their_organs_with_severity():
    for seed in range(2):
        healthy = ph.render(ph.make_subject(seed), 6.0, noise=False)
        changed = []
        for severity in (0.1, 0.5, 1.0):
            subject = ph.make_subject(seed, disease="lesions", severity=severity)
            image = ph.render(subject, 6.0, noise=False)
            difference = np.abs(image.image - healthy.image) > 15
            changed.append(difference.sum())
            assert np.array_equal(image.labels, healthy.labels)
            allowed = {ph.LABELS[lesion.organ] for lesion in subject.disease.lesions}
            assert set(np.unique(image.labels[difference])) <= allowed
        assert 0 < changed[0] < changed[1] < changed[2]


@pytest.mark.slow
def test_population_mixes_fields_of_view_and_diseases():
    population = ph.make_population(range(60), cut_share=0.4, disease_share=0.5)
    fields = [s.field_of_view for s in population.values()]
    kinds = [s.disease.kind for s in population.values()]
    assert 12 < sum(f != "torso" for f in fields) < 36 and set(fields) == set(ph.FIELDS_OF_VIEW)
    assert 18 < sum(k != "none" for k in kinds) < 42 and set(kinds) == set(ph.DISEASES)
    assert all(s.disease.present == (s.disease.severity > 0) for s in population.values())
    assert not any(s.disease.present for s in ph.make_population(range(10)).values())


def test_many_scanners_change_the_look_and_not_the_body():
    alike, varied = (ph.make_population(range(40), many_scanners=many) for many in (False, True))
    for name, one in alike.items():
        other = varied[name]
        assert other.deformation == one.deformation and other.field_low_mm == one.field_low_mm
        assert replace(other, appearance=one.appearance) == one
    looks = [np.array([[s.appearance.enhancement, s.appearance.noise_hu] for s in p.values()]) for p in (alike, varied)]
    narrow, wide = (look.max(axis=0) - look.min(axis=0) for look in looks)
    assert (wide > 3 * narrow).all() and looks[1].min() >= 0
    assert ph.make_subject(3, many_scanners=True) == ph.make_subject(3, many_scanners=True)


def test_truth_file_gives_back_the_same_subjects(tmp_path):
    written = ph.write_dataset(tmp_path, [3, 8], cut_share=1.0, disease_share=1.0, spacing_mm=16.0)
    written |= ph.write_dataset(tmp_path, [9], spacing_mm=16.0)
    assert ph.load_subjects(tmp_path) == ph.load_subjects(tmp_path / "truth.json") == written and len(written) == 3
    for case, subject in written.items():
        image = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "images" / f"{case}.nii.gz")))
        assert np.array_equal(image, np.rint(ph.render(subject, 16.0).image))
        assert ph.read_truth(tmp_path)[case]["disease"]["severity"] == subject.disease.severity > 0 or case.endswith(
            "9"
        )


def test_written_nifti_has_the_right_geometry(tmp_path):
    subjects = {"one": ph.make_subject(2)}
    organs = ["liver", "spleen"]
    spacing = (12.0, 10.0, 8.0)
    ph.write_subjects(
        tmp_path, subjects, spacing_mm=spacing, images_folder="imagesTr", image_suffix="_0000", organs=organs
    )
    image = sitk.ReadImage(str(tmp_path / "imagesTr" / "one_0000.nii.gz"))
    labels = sitk.ReadImage(str(tmp_path / "labels" / "one.nii.gz"))
    assert image.GetDirection() == labels.GetDirection() == (1, 0, 0, 0, 1, 0, 0, 0, 1)
    np.testing.assert_allclose(image.GetSpacing(), spacing[::-1])
    assert sorted(p.name for p in (tmp_path / "imagesTr").iterdir()) == ["one_0000.nii.gz"]
    table = ph.label_table(organs)
    assert table == {"background": 0, "liver": 1, "spleen": 2}
    array = sitk.GetArrayFromImage(labels)
    assert set(np.unique(array)) == {0, 1, 2}
    # The world position that SimpleITK gives a voxel is the subject's own: the organ there is the label.
    voxels = np.argwhere(binary_erosion(array == 1))
    world = [labels.TransformIndexToPhysicalPoint([int(i) for i in v[::-1]])[::-1] for v in voxels]
    found, _ = ph.labels_at(np.array(world), subjects["one"])
    assert len(voxels) > 20 and (found == ph.LABELS["liver"]).mean() > 0.98


@pytest.mark.slow
def test_two_processes_write_what_one_writes(tmp_path):
    subjects = ph.make_population([1, 2])
    for processes in (1, 2):
        ph.write_subjects(tmp_path / str(processes), subjects, spacing_mm=24.0, num_processes=processes)
    for case in subjects:
        one, two = (sitk.ReadImage(str(tmp_path / n / "images" / f"{case}.nii.gz")) for n in "12")
        assert np.array_equal(sitk.GetArrayFromImage(one), sitk.GetArrayFromImage(two))


def test_bad_requests_are_one_sentence(tmp_path):
    with refused(InputError, option="field of view", value="head"):
        ph.make_subject(0, field_of_view="head")
    with refused(InputError, option="disease", value="flu"):
        ph.make_subject(0, disease="flu")
    with refused(InputError, option="severity", value=2):
        ph.make_subject(0, disease="emphysema", severity=2)
    with refused(InputError, value="brain"):
        ph.label_table(["brain"])
    with refused(InputError, value="bladder"):
        ph.sample_points(ph.make_subject(0, field_of_view="chest"), 5, np.random.default_rng(0), organ="bladder")
    with refused(InputError, option="spacing"):
        ph.render(ph.make_subject(0), 0)
    with refused(MissingFileError, path="truth.json"):
        ph.load_subjects(tmp_path / "truth.json")
    (tmp_path / "truth.json").write_text(json.dumps({"cases": {"a": {"seed": 1}}}))
    with refused(InputError, case="a", path=tmp_path):
        ph.load_subjects(tmp_path)


def test_a_finished_disease_can_be_given():
    disease = ph.Disease("lesions", 0.5, (ph.Lesion("liver", (190.0, 0.0, -60.0), 15.0, -50.0),))
    subject = ph.make_subject(1, disease=disease)
    assert replace(subject, disease=ph.Disease()) == ph.make_subject(1)
    centre = subject.deformation.from_canonical(np.array([190.0, 0.0, -60.0]))
    image = ph.render(subject, 6.0, noise=False)
    voxel = tuple(np.rint(image.to_voxels(centre)).astype(int))
    assert image.image[voxel] == pytest.approx(-50, abs=25)


def test_the_disease_table_says_who_has_what(tmp_path):
    subjects = {kind: ph.make_subject(5, disease=kind) for kind in ph.DISEASES}
    ph.write_disease_table(tmp_path / "labels.csv", {case: subject.disease for case, subject in subjects.items()})
    table = pd.read_csv(tmp_path / "labels.csv", index_col="case", keep_default_na=False)
    assert table["kind"].to_dict() == {kind: kind for kind in ph.DISEASES}
    assert table["lesions"].to_dict() == {"none": 0, "lesions": 1, "emphysema": 0, "fatty_liver": 0}
    assert table["diffuse"].to_dict() == {"none": 0, "lesions": 0, "emphysema": 1, "fatty_liver": 1}
    for kind, subject in subjects.items():
        severities = table.loc[kind, ["lesion_severity", "diffuse_severity"]]
        assert sorted(severities) == [0, subject.disease.severity] or kind == "none"
    volume = sum(4 / 3 * np.pi * (lesion.radius_mm / 10) ** 3 for lesion in subjects["lesions"].disease.lesions)
    assert table.loc["lesions", "lesion_volume_ml"] == pytest.approx(volume, abs=1e-3) and volume > 0.1
    assert (table.drop(index="lesions")["lesion_volume_ml"] == 0).all()
