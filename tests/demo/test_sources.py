"""Phantoms of a demo: as many as asked for, and others for every seed."""

from nnunet_alice.demo.sources import Phantoms


def test_no_two_seeds_share_a_phantom(tmp_path, monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 1)  # starting processes would take longer than the work
    cases = []
    for seed in (0, 1, 2):
        folder = tmp_path / str(seed)
        Phantoms(unlabelled=2, training=1, test=1, spacing_mm=40.0, seed=seed).write(folder / "pool", folder / "raw")
        parts = [
            folder / "pool",
            *(folder / "raw" / f"{kind}{part}" for part in ("Tr", "Ts") for kind in ("images", "labels")),
        ]
        names = [sorted(path.name.partition(".")[0] for path in part.glob("*.nii.gz")) for part in parts]
        assert [len(part) for part in names] == [2, 1, 1, 1, 1]
        assert names[1] == [f"{case}_0000" for case in names[2]] and names[3] == [f"{case}_0000" for case in names[4]]
        cases += [*names[0], *names[2], *names[4]]
    assert len(set(cases)) == len(cases) == 12
