"""Trees of frozen settings: changed along a path, listed flat."""

from dataclasses import FrozenInstanceError, dataclass, field

import pytest

from nnunet_alice.training.settings import changed, flat, has_setting, unrecorded


@dataclass(frozen=True)
class Inner:
    low: int = 1
    high: int = 2
    shown: int = unrecorded(5)

    def __post_init__(self) -> None:
        if self.low > self.high:
            raise ValueError("low above high")


@dataclass(frozen=True)
class Tree:
    inner: Inner = field(default_factory=Inner)
    rate: float = 0.5


def test_a_change_copies_what_lies_on_its_path_and_nothing_else():
    tree = Tree()
    other = changed(tree, {"inner.low": 10, "inner.high": 20})  # either alone would be refused
    assert other == Tree(Inner(10, 20)) and tree == Tree()
    assert changed(tree, {"rate": 1.0}).inner is tree.inner
    with pytest.raises(FrozenInstanceError):
        other.rate = 2.0


def test_changes_are_checked_as_new_settings_are():
    with pytest.raises(ValueError):
        changed(Tree(), {"inner.low": 3})
    with pytest.raises(TypeError):
        changed(Tree(), {"inner.lo": 3})


def test_flat_lists_what_is_recorded_by_name():
    assert flat(Tree()) == {"low": 1, "high": 2, "rate": 0.5}
    assert list(flat(Tree())) == ["low", "high", "rate"]
    with pytest.raises(ValueError, match="low"):
        flat(Tree(), Inner())


@pytest.mark.parametrize(
    ("path", "there"), [("rate", True), ("inner.low", True), ("inner.lo", False), ("rate.x", False)]
)
def test_a_path_is_there_or_not(path, there):
    assert has_setting(Tree(), path) == there
