"""What the plots of predictions show."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from nnunet_alice.pictures.probe import draw_survival


@pytest.mark.parametrize(
    ("risks", "sizes"), [(range(3), (1, 1, 1)), (range(30), (10, 10, 10)), ([1, 1, 1], (0, 3, 0)), ([2], (0, 0, 1))]
)
def test_thirds_of_the_risk_are_even(risks, sizes):
    axes = Figure().subplots()
    risks = np.array(risks, dtype=float)
    draw_survival(axes, pd.DataFrame({"risk": risks[::-1], "target": np.arange(len(risks)) + 1, "event": 1}))
    expected = [f"{name} ({size})" for name, size in zip(("low risk", "middle", "high risk"), sizes, strict=True)]
    assert axes.get_legend_handles_labels()[1] == expected
