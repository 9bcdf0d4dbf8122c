"""Locks of files, also of files that are removed."""

import os
import threading

import pytest

from nnunet_alice.locks import held


@pytest.mark.skipif(os.name == "nt", reason="locks of POSIX")
def test_a_lock_whose_file_was_removed_is_taken_anew(tmp_path):
    """Whoever waited for the removed file would else hold nothing that others see."""
    path, order = tmp_path / "a.lock", []

    def second():
        with held(path, wait=True):
            order.append("second")
            with held(path) as third:
                order.append(third)

    with held(path) as first:
        assert first is not None and first >= 0
        waiting = threading.Thread(target=second)
        waiting.start()
        with held(path) as other:
            assert other is None
        path.unlink()
        order.append("first")
    waiting.join(20)
    assert order == ["first", "second", None]
