"""nnU-Net's folders: what is missing is said with what would mend it."""

import pytest

from nnunet_alice.errors import NotPreparedError
from nnunet_alice.files import write_json
from nnunet_alice.nnunet_folders import PreprocessedDataset


@pytest.mark.parametrize(
    ("there", "message"),
    [((), "no plans nnUNetPlans.json; run:"), (("AlicePlans",), "but AlicePlans; name those with -p, or run:")],
)
def test_missing_plans_are_answered_with_those_that_are_there(tmp_path, monkeypatch, there, message):
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path))
    (tmp_path / "Dataset900_CT").mkdir()
    for name in there:
        write_json(tmp_path / "Dataset900_CT" / f"{name}.json", {})
    with pytest.raises(NotPreparedError, match=message):
        PreprocessedDataset.find("Dataset900_CT", "nnUNetPlans", "3d_fullres")
