"""Fetching: from a folder, a web server and a hub on this machine; damage, pickles and escapes are refused."""

import os
import shutil
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from support.refused import refused

from nnunet_alice.errors import CheckpointError, DamagedCheckpointError, InputError, UnsafeCheckpointError
from nnunet_alice.publishing import download as downloading
from nnunet_alice.publishing.download import download
from nnunet_alice.publishing.fetch import fetch

WEIGHTS = "model.safetensors"


@pytest.fixture
def copy(published, tmp_path):
    """A copy of the published folder, to be damaged."""
    return Path(shutil.copytree(published.folder, tmp_path / "copy"))


@pytest.fixture
def hub(published, serve, monkeypatch):
    """The server as the hub of huggingface_hub in this process."""
    constants = pytest.importorskip("huggingface_hub.constants")
    server = serve(published.folder)
    monkeypatch.setattr(constants, "ENDPOINT", server.address)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.address + "/{repo_id}/resolve/{revision}/{filename}"
    )
    return server


def same_files(folder, published) -> bool:
    return all((folder / name).read_bytes() == (published.folder / name).read_bytes() for name in published.files)


def change_byte(path: Path, place: int = -1) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(bytes(content))


def resum(folder: Path, **changes: str) -> None:
    """Write the checksums anew, as somebody who means harm would."""
    names = [path.name for path in folder.iterdir() if path.name not in ("SHA256SUMS", "README.md")]
    lines = {name: sha256((folder / name).read_bytes()).hexdigest() for name in names} | changes
    (folder / "SHA256SUMS").write_text("".join(f"{checksum}  {name}\n" for name, checksum in lines.items()))


# ----------------------------------------------------------------------------------------------------- folders


def test_a_folder_is_checked_where_it_lies(published):
    assert fetch(str(published.folder)) == published.folder
    assert fetch(str(published.folder), published.checksum) == published.folder


def test_the_card_may_be_edited(copy):
    (copy / "README.md").write_text("# my own words")
    assert fetch(str(copy)) == copy


@pytest.mark.parametrize("name", [WEIGHTS, "checkpoint.json", "plans.json", "progress.png"])
@pytest.mark.parametrize("place", [0, -1])
def test_a_changed_byte_is_refused(copy, name, place):
    change_byte(copy / name, place)
    with refused(DamagedCheckpointError, path=name):
        fetch(str(copy))


@pytest.mark.parametrize("name", [WEIGHTS, "plans.json"])
def test_a_missing_file_is_refused(copy, name):
    (copy / name).unlink()
    with refused(DamagedCheckpointError, path=name):
        fetch(str(copy))


def test_a_pickle_under_the_name_of_safetensors_is_refused(copy):
    torch.save({"network_weights": {"a": torch.ones(1)}}, copy / WEIGHTS)
    resum(copy)
    with refused(UnsafeCheckpointError, path=WEIGHTS) as caught:
        fetch(str(copy))
    assert not isinstance(caught.value, DamagedCheckpointError)


def test_a_folder_with_a_pickle_instead_is_refused(tmp_path):
    torch.save({}, tmp_path / "pytorch_model.bin")
    with refused(CheckpointError, path=tmp_path, value="pytorch_model.bin"):
        fetch(str(tmp_path))


@pytest.mark.parametrize("name", ["../evil", "/etc/passwd", "sub/model.safetensors", "weights.pth", "SHA256SUMS"])
def test_names_that_no_published_model_has_are_refused(copy, name):
    resum(copy, **{name: "0" * 64})
    with refused(UnsafeCheckpointError, path="SHA256SUMS", value=name):
        fetch(str(copy))


@pytest.mark.parametrize("text", ["", "hello", "0" * 64 + "  plans.json\n"])
def test_a_list_of_checksums_without_the_weights_is_refused(copy, text):
    (copy / "SHA256SUMS").write_text(text)
    with refused(CheckpointError, path="SHA256SUMS"):
        fetch(str(copy))


def test_another_model_than_the_one_asked_for(published):
    with refused(CheckpointError, option="--sha256", value=str(published.folder)):
        fetch(str(published.folder), "0" * 64)


@pytest.mark.parametrize(
    ("source", "checksum"),
    [("hf:noslash", None), ("hf:a/b/c", None), ("https://x.org/y", None), ("https://x.org/y", "12"), ("nowhere", None)],
)
def test_what_cannot_be_a_source(source, checksum, tmp_path):
    with pytest.raises(InputError):
        fetch(source, checksum, tmp_path)
    assert not list(tmp_path.iterdir())


# -------------------------------------------------------------------------------------------------- web server


def test_from_a_server_and_then_without_it(published, serve, tmp_path):
    server = serve(published.folder)
    folder = fetch(f"{server.address}/files", published.checksum, tmp_path)
    assert all((folder / name).is_file() for name in published.files if name != "README.md")
    asked = len(server.asked)
    assert fetch(f"{server.address}/files/SHA256SUMS", published.checksum, tmp_path) == folder
    assert len(server.asked) == asked, "all came from the cache"
    assert fetch("http://127.0.0.1:9/gone", published.checksum, tmp_path) == folder


def test_a_download_that_breaks_off_goes_on(published, serve, tmp_path, monkeypatch):
    server = serve(published.folder)
    server.break_after = {WEIGHTS: [4000, 3000, 2000]}
    with refused(InputError, value=f"{server.address}/files/{WEIGHTS}"):
        fetch(f"{server.address}/files", published.checksum, tmp_path)
    folder = fetch(f"{server.address}/files", published.checksum, tmp_path)
    ranges = [given for path, given in server.asked if path.endswith(WEIGHTS)]
    assert ranges == [None, "bytes=4000-", "bytes=7000-", "bytes=9000-"]
    assert (folder / WEIGHTS).read_bytes() == (published.folder / WEIGHTS).read_bytes()
    assert not list(folder.glob("*.part"))


def test_a_server_that_knows_no_ranges(published, serve, tmp_path):
    server = serve(published.folder)
    server.ranges, server.break_after = False, {WEIGHTS: [4000]}
    folder = fetch(f"{server.address}/files", published.checksum, tmp_path)
    assert (folder / WEIGHTS).read_bytes() == (published.folder / WEIGHTS).read_bytes()


def test_the_part_of_another_file_is_not_gone_on_with(published, serve, tmp_path):
    server = serve(published.folder)
    target = tmp_path / WEIGHTS
    checksum = sha256((published.folder / WEIGHTS).read_bytes()).hexdigest()
    for wrong in (b"x" * 100, b"x" * 10_000_000):
        target.with_name(f"{WEIGHTS}.part").write_bytes(wrong)
        download(f"{server.address}/files/{WEIGHTS}", target, checksum)
        assert sha256(target.read_bytes()).hexdigest() == checksum
        target.unlink()


def test_a_server_that_gives_another_file_leaves_nothing(copy, published, serve, tmp_path):
    change_byte(copy / WEIGHTS)
    address = f"{serve(copy).address}/files"
    with refused(DamagedCheckpointError, value=f"{address}/{WEIGHTS}"):
        fetch(address, published.checksum, tmp_path / "cache")
    assert not list((tmp_path / "cache").rglob(f"{WEIGHTS}*"))


def test_a_changed_list_is_refused_before_anything_else_is_asked_for(copy, published, serve, tmp_path):
    server = serve(copy)
    resum(copy, **{"../evil": "0" * 64})
    with pytest.raises(DamagedCheckpointError):
        fetch(f"{server.address}/files", published.checksum, tmp_path / "cache")
    evil = sha256((copy / "SHA256SUMS").read_bytes()).hexdigest()
    with refused(UnsafeCheckpointError, value="../evil"):
        fetch(f"{server.address}/files", evil, tmp_path / "cache")
    assert {path for path, _ in server.asked} == {"/files/SHA256SUMS"}
    assert not (tmp_path / "evil").exists() and not (tmp_path / "cache" / "evil").exists()


def test_a_damaged_cache_mends_itself(published, serve, tmp_path):
    server = serve(published.folder)
    folder = fetch(f"{server.address}/files", published.checksum, tmp_path)
    change_byte(folder / WEIGHTS)
    assert fetch(f"{server.address}/files", published.checksum, tmp_path) == folder


def test_no_server_and_no_file(published, serve, tmp_path, monkeypatch):
    monkeypatch.setattr(downloading, "TIMEOUT_S", 2)
    address = f"{serve(published.folder).address}/nowhere"
    with refused(InputError, value=f"{address}/SHA256SUMS"):
        fetch(address, published.checksum, tmp_path)
    with refused(InputError, value="http://127.0.0.1:9/gone/SHA256SUMS"):
        fetch("http://127.0.0.1:9/gone", published.checksum, tmp_path)


# --------------------------------------------------------------------------------------------------------- hub


def test_from_the_hub_and_then_without_it(hub, published, tmp_path, monkeypatch):
    folder = fetch("hf:me/model", cache=tmp_path)
    assert same_files(folder, published) and tmp_path in folder.parents
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    assert fetch("hf:me/model", cache=tmp_path) == folder
    with refused(InputError, value="hf:me/model"):
        fetch("hf:me/model", cache=tmp_path / "empty")


@pytest.mark.slow
def test_the_hub_client_as_users_call_it(published, serve, tmp_path):
    """The command in a process of its own, with HF_ENDPOINT."""
    pytest.importorskip("huggingface_hub")
    server = serve(published.folder)
    environment = os.environ | {"HF_ENDPOINT": server.address, "NNUNET_ALICE_CACHE": str(tmp_path / "cache")}
    command = [sys.executable, "-m", "nnunet_alice.cli.main", "fetch", "hf:me/model@main"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
    folder = Path(result.stdout.partition("checked: ")[2].split("\n")[0])
    assert same_files(folder, published) and tmp_path / "cache" in folder.parents


def test_only_files_of_a_published_model_are_taken_from_the_hub(hub, published, tmp_path):
    hub.listed = ["../evil.txt", "pytorch_model.bin", "code.py"]
    fetch("hf:me/model", cache=tmp_path / "cache")
    asked = {path.rpartition("/")[2] for path, _ in hub.asked}
    assert not asked & {"evil.txt", "pytorch_model.bin", "code.py"}
    assert not list(tmp_path.rglob("evil*"))


def test_a_damaged_snapshot_is_fetched_again(hub, published, tmp_path):
    folder = fetch("hf:me/model", cache=tmp_path)
    change_byte((folder / WEIGHTS).resolve())
    assert same_files(fetch("hf:me/model", cache=tmp_path), published)


def test_a_repository_that_is_none_of_ours(hub, published, tmp_path):
    with refused(InputError, value="hf:me/other", command="hf auth login"):
        fetch("hf:me/other", cache=tmp_path)
    hub.folder = tmp_path / "empty"
    hub.folder.mkdir()
    (hub.folder / "README.md").write_text("# something else")
    with refused(CheckpointError):
        fetch("hf:me/model", cache=tmp_path / "cache")


# ----------------------------------------------------------------------------------------------------- command
