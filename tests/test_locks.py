"""Locks of files, also of files that are removed."""

import os
import threading
from contextlib import suppress
from pathlib import Path

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


def test_a_folder_that_is_removed_before_the_lock_is_made_comes_back(tmp_path, monkeypatch):
    path, make, made = tmp_path / "locks" / "a.lock", Path.mkdir, []

    def removed_at_first(folder, *args, **kwargs):
        make(folder, *args, **kwargs)
        made.append(folder)
        if len(made) == 1:
            folder.rmdir()

    monkeypatch.setattr(Path, "mkdir", removed_at_first)
    with held(path):
        assert path.is_file()


@pytest.mark.skipif(os.name == "nt", reason="locks of POSIX")
@pytest.mark.parametrize("interrupted", [False, True])
def test_what_a_killed_child_started_does_not_keep_the_lock(tmp_path, interrupted):
    """Workers outlive a training that was killed; of a holder that is interrupted, the training itself may go on."""
    path, inherited = tmp_path / "a.lock", []
    with suppress(KeyboardInterrupt), held(path) as lock:
        inherited.append(os.dup(lock))
        if interrupted:
            raise KeyboardInterrupt
    with held(path) as again:
        assert (again is None) == interrupted
    os.close(inherited[0])
    with held(path) as at_last:
        assert at_last is not None
