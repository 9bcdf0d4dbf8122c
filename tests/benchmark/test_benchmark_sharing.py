"""Processes that share a benchmark: parts, locks, splits, and who waits for whom."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from support.benchmark_runs import CELLS, content, make_runner
from support.labelled_runs import DATASET
from support.refused import refused

from nnunet_alice.errors import InputError
from nnunet_alice.locks import held


def test_parts_cover_all_and_do_not_overlap(base):
    finished = []
    for part in (1, 2, 3):
        runner, pretender = make_runner(base, content(base))
        outcome = runner.run((part, 3))
        assert len(outcome.done) == len(pretender.finished)
        finished += pretender.finished
    assert len(finished) == len(set(finished)) == CELLS
    with refused(InputError, option="--part", value="4/3"):
        make_runner(base, content(base))[0].run((4, 3))


def test_splits_are_added_by_one_process_at_a_time(base):
    """Both have read the same list before one writes: without a lock the other's fold would be lost."""
    few, many = (make_runner(base, content(base, draws=draws))[0] for draws in (1, 3))
    few.prepare()
    names = base / "bench" / "preprocessed" / DATASET / "splits_names.json"
    with ThreadPoolExecutor() as pool:
        with held(base / "bench" / "locks" / "splits.lock"):
            waiting = pool.submit(many.prepare)
            time.sleep(0.3)
            assert not waiting.done() and len(json.loads(names.read_text())) == 2
        waiting.result()
    before = names.stat().st_mtime_ns
    few.prepare()
    assert len(json.loads(names.read_text())) == 6 and few.folds.items() <= many.folds.items()
    assert names.stat().st_mtime_ns == before


def test_test_cells_wait_until_tuning_is_done_elsewhere(base):
    arms = {"scratch": {"learning_rates": [1e-2, 1e-3]}, "alice": {"checkpoints": str(base / "pretrained.pth")}}
    first, _ = make_runner(base, content(base, arms=arms))
    outcome = first.run((1, 2))
    assert outcome.waiting and all(".scratch." in name for name in outcome.waiting)
    make_runner(base, content(base, arms=arms))[0].run((2, 2))
    assert not make_runner(base, content(base, arms=arms))[0].run((1, 2)).waiting


def test_a_lock_belongs_to_the_weights_in_whatever_order_they_are_named(base):
    (base / "other.pth").write_bytes(b"second seed")
    names = [str(base / "pretrained.pth"), str(base / "other.pth")]
    locks = []
    for order in (names, names[::-1]):
        arms = {"scratch": None, "alice": {"checkpoints": order}}
        runner = make_runner(base, content(base, arms=arms))[0]
        runner.prepare()
        locks.append({runner.fold_folder(cell): runner.lock_file(cell) for cell in runner.test_cells()})
    assert locks[0] == locks[1] and len(set(locks[0].values())) == len(locks[0]) == CELLS * 3 / 2


def test_a_cell_that_another_process_runs_is_left_to_it(base):
    runner, _ = make_runner(base, content(base))
    runner.prepare()
    cell = runner.test_cells()[0]
    with held(runner.lock_file(cell)) as lock:
        assert lock is not None
        outcome = runner.run()
    assert outcome.waiting == [cell.name] and len(outcome.done) == CELLS - 1


#: a training with two workers, one forked and one spawned; they outlive it and write down who they are
TRAINING = """#!/usr/bin/env python
import os
import subprocess
import sys
import time

if __name__ == "__main__":
    folder = sys.argv[1]
    forked = os.fork()
    if forked == 0:
        if os.fork() == 0:  # a child of a child: its files stay open
            file = open(f"{folder}/grandchild", "w")
            if os.fork() == 0:
                print("open", file=file, flush=True)
                os._exit(0)
            os._exit(0)
        time.sleep(600)
    spawned = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], close_fds=False)
    with open(f"{folder}/written", "w") as file:
        print(os.getpid(), forked, spawned.pid, file=file)
    os.rename(f"{folder}/written", f"{folder}/ready")
    time.sleep(600)
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="locks of POSIX")
def test_a_lock_outlives_its_holder_in_the_training_and_not_in_its_workers(base):
    """A training that was left behind by a killed runner keeps its cell; workers that it left behind do not."""
    script = base / "train"
    script.write_text(TRAINING)
    script.chmod(0o755)
    holder = f"""
from pathlib import Path
from nnunet_alice.locks import held
from nnunet_alice.benchmark.runner import Command, run_command
with held(Path({str(base / "x.lock")!r})) as lock:
    run_command(Command(({str(script)!r}, {str(base)!r}), {{}}, Path({str(base / "log")!r})), [lock])
"""
    parent = subprocess.Popen([sys.executable, "-c", holder])
    wait_for((base / "ready").is_file)
    parent.kill()
    parent.wait()
    training, *workers = map(int, (base / "ready").read_text().split())

    def is_free():
        with held(base / "x.lock") as lock:
            return lock is not None

    try:
        assert not is_free()
        os.kill(training, signal.SIGKILL)
        wait_for(is_free, seconds=10)
        for worker in workers:
            os.kill(worker, 0)  # it lives
        wait_for(lambda: (base / "grandchild").read_text() == "open\n", seconds=10)
    finally:
        for worker in workers:
            os.kill(worker, signal.SIGKILL)


def wait_for(condition, seconds: float = 60) -> None:
    """Until it is true; fails after some time."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)


def test_a_file_system_without_locks_does_not_stop_the_work(base, monkeypatch, caplog):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    assert len(make_runner(base, content(base))[0].run().done) == CELLS
    assert "cannot be locked" in caplog.text
