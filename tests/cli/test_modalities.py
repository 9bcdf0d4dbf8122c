"""`plan --modalities`: every case is normalised by its own scheme, and plain plans of each modality lie beside."""

import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from support.modality_pools import POOL, planned_pool, run, write_pool

from nnunet_alice.cli.main import main
from nnunet_alice.dataset import MODALITIES
from nnunet_alice.files import read_json


def raw_and_body(dataset, case):
    """Image and body mask of a raw case, (z, y, x)."""
    raw = dataset.base.parents[1] / "nnUNet_raw" / dataset.name
    files = read_json(raw / "dataset.json")["dataset"][case]
    arrays = (sitk.GetArrayFromImage(sitk.ReadImage(str(raw / path))) for path in (files["images"][0], files["label"]))
    image, label = arrays
    return image.astype(np.float32), label > 0


def test_ct_is_clipped_by_the_ct_cases_and_mr_is_z_scored_in_the_body(folder):
    dataset = planned_pool(folder)
    assert dataset.modalities == {case: modality for modality, cases in POOL.items() for case in cases}
    window = dataset.plans[MODALITIES]["CT"]["foreground_intensity_properties_per_channel"]["0"]
    inside = np.concatenate([image[body] for image, body in (raw_and_body(dataset, case) for case in POOL["CT"])])
    # nnU-Net draws voxels of small images with replacement
    for key, value in {"percentile_00_5": np.percentile(inside, 0.5), "mean": inside.mean()}.items():
        assert window[key] == pytest.approx(value, abs=0.05 * float(inside.std()))
    image, _ = raw_and_body(dataset, "CT__c1")
    expected = np.clip(image, window["percentile_00_5"], window["percentile_99_5"]) - window["mean"]
    np.testing.assert_allclose(dataset.image("CT__c1")[0], expected / window["std"], rtol=1e-4, atol=1e-4)
    for case in POOL["T1"]:
        image, body = raw_and_body(dataset, case)
        cropped = tuple(slice(n) for n in dataset.shape(case))
        assert image.shape == dataset.shape(case), cropped  # nothing was cropped, so that voxels can be compared
        expected = (image - image[body].mean()) / image[body].std()
        np.testing.assert_allclose(dataset.image(case)[0], expected, rtol=1e-4, atol=1e-4)


def test_nnunet_takes_the_plans_of_each_modality(folder):
    dataset = planned_pool(folder)
    raw = folder / "nnUNet_raw" / dataset.name
    content = read_json(raw / "dataset.json")
    for modality, case in (("CT", "CT__c0"), ("T1", "T1__m0")):
        plans = PlansManager(str(dataset.base / f"AliceSmallPlans_{modality}.json"))
        configuration = plans.get_configuration("3d_fullres")
        files = content["dataset"][case]
        paths = [str(raw / files["images"][0])], str(raw / files["label"])
        found, _, _ = configuration.preprocessor_class(verbose=False).run_case(*paths, plans, configuration, content)
        ours = dataset.image(case)[...]
        if modality == "T1":  # the whole image's z-score: one factor and one shift away
            found = (found - found.mean()) / found.std() * ours.std() + ours.mean()
        np.testing.assert_allclose(ours, found, rtol=1e-4, atol=1e-4)


def written(dataset):
    """Case -> when it was preprocessed, ns."""
    return {case: (dataset.folder / f"{case}.pkl").stat().st_mtime_ns for case in dataset.cases()}


def written_again(dataset, folder, modalities):
    """Cases that a plan by a table of these modalities preprocesses again."""
    pd.Series(modalities, name="modality").rename_axis("case").to_csv(folder / "table.csv")
    before = written(dataset)
    run("plan", "-d", 900, "-pl", "AlicePlannerSmall", "-np", 1, "--modalities", folder / "table.csv")
    return {case for case, stamp in written(dataset).items() if stamp != before[case]}


@pytest.mark.slow
def test_a_case_whose_modality_changes_is_preprocessed_again_alone(folder):
    dataset = planned_pool(folder)
    modalities = dataset.modalities | {"T1__m2": "T2"}
    assert written_again(dataset, folder, modalities) == set(modalities)  # of all, as the plans know a modality more
    assert written_again(dataset, folder, modalities) == set()
    assert written_again(dataset, folder, modalities | {"T1__m1": "T2"}) == {"T1__m1"}
    # and without the option as named before
    run("plan", "-d", 900, "-pl", "AlicePlannerSmall", "-np", 1, "--no_preprocess")
    assert read_json(dataset.base / "AliceSmallPlans.json")[MODALITIES].keys() == {"CT", "T1", "T2"}


def test_tables_that_do_not_fit_are_refused(folder, capsys):
    write_pool(folder / "pool", {"CT": ("CT__a", "CT__b")})
    run("import", "-i", folder / "pool", "-d", 900, "-n", "Pool", "--channel", "any", "-np", 1)
    refused = {
        "case,modality\nCT__a,CT\n": "names no modality of CT__b",
        "case,modality\nCT__a,CT\nCT__b,CT\n": "names one modality only",
        "case,modality\nCT__a,CT\nCT__b,T 1\n": "no name of a modality",
        "case\na\n": "has one column",
    }
    for content, words in refused.items():
        (folder / "table.csv").write_text(content)
        assert main(["plan", "-d", "900", "-np", "1", "--modalities", str(folder / "table.csv")]) == 1
        assert words in capsys.readouterr().err
