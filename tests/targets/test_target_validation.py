"""What is written about validation cases."""

import numpy as np
import pandas as pd
from support.refused import refused

from nnunet_alice.errors import InputError
from nnunet_alice.targets.definitions import TargetDefinition
from nnunet_alice.targets.settings import TargetSettings
from nnunet_alice.targets.tasks import learn_task
from nnunet_alice.targets.validation import Validated, write_results


def test_where_no_case_can_be_read_the_first_is_named_with_its_reason(tmp_path):
    task = learn_task(
        TargetDefinition("age", "regression", ("age",)), pd.DataFrame({"age": [1.0, 2.0]}), TargetSettings()
    )
    found = Validated(failed={"c0": "c0.b2nd is damaged.", "c1": "gone"})
    with refused(InputError, case="c0", option="--val") as caught:
        write_results(tmp_path / "validation", task, found, np.zeros((0, 1)), [])
    assert "c0.b2nd is damaged)" in str(caught.value) and not (tmp_path / "validation").exists()
