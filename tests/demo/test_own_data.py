"""A user's dataset: which cases keep their labels, what is linked, and one sentence for everything that is wrong."""

import json
from pathlib import Path

import pytest
from support.own_data import dataset
from support.refused import refused

from nnunet_alice.demo.own_data import OwnData, read_own_data
from nnunet_alice.errors import InputError, MissingFileError


def written(data: OwnData, folder: Path) -> dict[str, dict[str, str]]:
    """Folder -> name -> content of what the demo begins with."""
    data.write(folder / "unlabelled", folder / "raw")
    parts = [
        folder / "unlabelled",
        *(folder / "raw" / f"{kind}{part}" for kind in ("images", "labels") for part in ("Tr", "Ts")),
    ]
    return {part.name: {file.name: file.read_text() for file in part.iterdir()} for part in parts}


def test_parts_are_apart_and_together_all_cases(tmp_path):
    folder = dataset(tmp_path / "Dataset012_My Organs")
    data = read_own_data(folder, labelled=2, test=None, seed=0)
    assert data.name == "My_Organs" and len(data.labelled) == 2 and len(data.test) == 3
    assert not set(data.test) & set(data.pool) and set(data.labelled) < set(data.pool)
    assert set(data.test) | set(data.pool) == {f"case{number}" for number in range(9)}
    files = written(data, tmp_path / "demo")
    assert set(files["unlabelled"]) == {f"{case}.nii.gz" for case in data.pool}
    for part, cases in (("Tr", data.labelled), ("Ts", data.test)):
        assert files[f"images{part}"] == {f"{case}_0000.nii.gz": f"image {case[4:]} 0" for case in cases}
        assert files[f"labels{part}"] == {f"{case}.nii.gz": f"label {case[4:]}" for case in cases}
    assert json.loads((tmp_path / "demo" / "raw" / "dataset.json").read_text())["numTraining"] == 2


def test_the_seed_decides_the_parts(tmp_path):
    folder = dataset(tmp_path, cases=20)
    draws = [read_own_data(folder, labelled=2, test=5, seed=seed) for seed in (0, 0, 1, 2)]
    assert draws[0] == draws[1] and len({draw.labelled for draw in draws}) == 3
    more = read_own_data(folder, labelled=4, test=5, seed=0)
    assert more.test == draws[0].test and set(draws[0].labelled) < set(more.labelled)


def test_all_channels_are_linked(tmp_path):
    data = read_own_data(dataset(tmp_path / "set", channels=2), labelled=1, test=1, seed=0)
    files = written(data, tmp_path / "demo")
    assert len(data.channels) == 2
    assert set(files["unlabelled"]) == {f"{case}_000{channel}.nii.gz" for case in data.pool for channel in (0, 1)}


def test_images_without_label_are_pretrained_on_only(tmp_path):
    folder = dataset(tmp_path)
    for case in ("case3", "case4"):
        (folder / "labelsTr" / f"{case}.nii.gz").unlink()
    for seed in range(20):
        data = read_own_data(folder, labelled=2, test=3, seed=seed)
        assert data.without_label == ("case3", "case4") and set(data.without_label) < set(data.pool)
        assert not set(data.without_label) & {*data.labelled, *data.test}


def test_paths_in_dataset_json_are_followed(tmp_path, monkeypatch):
    folder = dataset(tmp_path / "set")
    (folder / "imagesTr").rename(tmp_path / "elsewhere")
    monkeypatch.setenv("SCANS", str(tmp_path))
    listed = {
        f"case{n}": {"images": [f"$SCANS/elsewhere/case{n}_0000.nii.gz"], "label": f"labelsTr/case{n}.nii.gz"}
        for n in range(9)
    }
    data = read_own_data(dataset(folder, cases=0, dataset=listed), labelled=2, test=3, seed=0)
    assert set(written(data, tmp_path / "demo")["unlabelled"]) == {f"{case}.nii.gz" for case in data.pool}
    assert "dataset" not in json.loads((tmp_path / "demo" / "raw" / "dataset.json").read_text())


def no_folder(folder):
    return folder / "missing"


def no_dataset_json(folder):
    (folder / "dataset.json").unlink()


def broken_dataset_json(folder):
    (folder / "dataset.json").write_text("{")


def a_list_as_dataset_json(folder):
    (folder / "dataset.json").write_text("[]")


def decathlon(folder):
    dataset(folder, labels={"0": "background", "1": "liver"}, channel_names=None, training=[])


def a_key_is_missing(folder):
    dataset(folder, file_ending=None)


def labels_the_other_way_round(folder):
    dataset(folder, labels={"0": "background", "1": "liver"})


def labels_as_a_list(folder):
    dataset(folder, labels=["background", "liver"])


def a_label_without_number(folder):
    dataset(folder, labels={"background": 0, "liver": "one"})


def no_background(folder):
    dataset(folder, labels={"liver": 1})


def channels_the_other_way_round(folder):
    dataset(folder, channel_names={"CT": "0"})


def channels_as_a_list(folder):
    dataset(folder, channel_names=["CT"])


def cases_as_a_list(folder):
    dataset(folder, dataset=[{"images": [], "label": ""}])


def pictures(folder):
    dataset(folder, file_ending=".png")


def no_labels_folder(folder):
    (folder / "labelsTr").rename(folder / "labels")


def no_channel_number(folder):
    for image in (folder / "imagesTr").iterdir():
        image.rename(image.with_name(image.name.replace("_0000", "")))


def no_label_at_all(folder):
    for label in (folder / "labelsTr").iterdir():
        label.unlink()


def a_label_without_image(folder):
    (folder / "imagesTr" / "case2_0000.nii.gz").unlink()


def a_channel_is_missing(folder):
    dataset(folder, channels=2)
    (folder / "imagesTr" / "case2_0001.nii.gz").unlink()


def keep_cases(folder, number):
    for case in range(number, 9):
        (folder / "imagesTr" / f"case{case}_0000.nii.gz").unlink()
        (folder / "labelsTr" / f"case{case}.nii.gz").unlink()


def too_few(folder):
    keep_cases(folder, 4)


def too_few_for_any_parts(folder):
    keep_cases(folder, 3)


def one_label(folder):
    for case in range(1, 9):
        (folder / "labelsTr" / f"case{case}.nii.gz").unlink()


@pytest.mark.parametrize(
    ("spoil", "kind", "fields"),
    [
        (no_folder, MissingFileError, {}),
        (no_dataset_json, InputError, {"value": "dataset.json"}),
        (broken_dataset_json, InputError, {"path": "dataset.json", "value": None}),
        (a_list_as_dataset_json, InputError, {"path": "dataset.json", "value": "labels"}),
        (decathlon, InputError, {"command": "nnUNetv2_convert_MSD_dataset"}),
        (a_key_is_missing, InputError, {"path": "dataset.json", "value": "file_ending"}),
        (labels_the_other_way_round, InputError, {"path": "dataset.json", "value": "labels"}),
        (labels_as_a_list, InputError, {"path": "dataset.json", "value": "labels"}),
        (a_label_without_number, InputError, {"path": "dataset.json", "value": "labels"}),
        (no_background, InputError, {"path": "dataset.json", "value": "labels"}),
        (channels_the_other_way_round, InputError, {"path": "dataset.json", "value": "channel_names"}),
        (channels_as_a_list, InputError, {"path": "dataset.json", "value": "channel_names"}),
        (cases_as_a_list, InputError, {"path": "dataset.json", "value": "dataset"}),
        (pictures, InputError, {"value": ".png"}),
        (no_labels_folder, InputError, {"value": "labelsTr"}),
        (no_channel_number, InputError, {"path": "imagesTr", "value": "_0000.nii.gz"}),
        (no_label_at_all, InputError, {"value": 9, "option": None}),
        (a_label_without_image, InputError, {"path": "labelsTr", "value": "case2.nii.gz"}),
        (a_channel_is_missing, InputError, {"case": "case2", "value": 1}),
        (too_few, InputError, {"option": "--labelled", "value": 4}),
        (too_few_for_any_parts, InputError, {"option": None, "value": 3}),
        (one_label, InputError, {"option": None, "value": 9}),
    ],
)
def test_what_is_wrong_is_one_sentence(tmp_path, spoil, kind, fields):
    folder = dataset(tmp_path)
    folder = spoil(folder) or folder
    with refused(kind, **fields) as caught:
        read_own_data(folder, labelled=2, test=None, seed=0)
    assert "\n" not in str(caught.value)
