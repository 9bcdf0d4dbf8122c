"""A pretraining checkpoint with secrets in it, and servers on this machine that others would fetch it from."""

import json
import re
import threading
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_alice.checkpoints.pretraining import describe_run
from nnunet_alice.checkpoints.saving import save_checkpoint
from nnunet_alice.publishing.card import CardText
from nnunet_alice.publishing.publish import publish
from support.labelled_runs import write_labelled
from support.small_datasets import set_folders

PRETRAINED = "Dataset900_Chest"
CASES = ("smith_john", "doe_jane")
HOME = "/home/somebody/scans"


def network_of(plans: dict, seed: int = 0):
    """The network of the plans, one channel in and out."""
    settings = PlansManager(plans).get_configuration("3d_fullres")
    torch.manual_seed(seed)
    return get_network_from_plans(
        settings.network_arch_class_name,
        settings.network_arch_init_kwargs,
        settings.network_arch_init_kwargs_req_import,
        1,
        1,
        deep_supervision=False,
    )


def pretraining_checkpoint(plans: dict, dataset_json: dict) -> dict:
    """What a pretraining trainer saves, with names of cases and paths wherever some could be."""
    plans = plans | {"dataset_name": PRETRAINED}
    dataset_json = dataset_json | {
        "labels": {"background": 0, "body": 1},
        "numTraining": len(CASES),
        "dataset": {case: {"images": [f"{HOME}/{case}.nii.gz"], "label": f"labelsTr/{case}.nii.gz"} for case in CASES},
    }
    network = network_of(plans)
    run = describe_run(
        method="Alice",
        trainer_name="AliceTrainer",
        plans=plans,
        configuration="3d_fullres",
        dataset_json=dataset_json,
        num_input_channels=1,
        hyper_parameters={"epochs": 3, "iterations": 2, "range": (0.04, 0.4), "alignment": True},
        epochs_done=3,
        trained={"encoder": True, "decoder": True},
        matching="atlas",
        fold="all",
        views={"matching": "atlas", "anatomy": "0f" * 8, "cases": "1f" * 8, "number": 2},
    )
    run["pretraining"]["hyper_parameters"]["first_case"] = CASES[0]
    run["pretraining"]["hyper_parameters"]["started_from"] = f"{HOME}/mim.pth"
    return {
        "network_weights": network.state_dict(),
        "model_state": {"teacher": torch.ones(3)},
        "optimizer_state": {"state": {}},
        "logging": {"log": [1.0]},
        "history": [],
        "current_epoch": 3,
        "init_args": {"dataset_json": dataset_json},
        "trainer_name": "AliceTrainer",
        "citations": [],
        **run,
    }


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Folder of the machine that pretrained: a model folder with its checkpoint, a labelled dataset."""
    base = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        set_folders(patch, base)
        folder = write_labelled(base / "preprocessed", 3)
    model = base / "results" / PRETRAINED / "AliceTrainer__nnUNetPlans__3d_fullres"
    plans, dataset_json = (json.loads((folder / name).read_text()) for name in ("nnUNetPlans.json", "dataset.json"))
    save_checkpoint(pretraining_checkpoint(plans, dataset_json), model / "fold_all" / "checkpoint_final.pth")
    fingerprint = {"spacings": [[2.0, 1.0, 1.5]], "shapes_after_crop": [[18, 20, 16]], "left_out": {CASES[1]: "broken"}}
    (model / "dataset_fingerprint.json").write_text(json.dumps(fingerprint))
    (model / "fold_all" / "progress.png").write_bytes(b"\x89PNG curves")
    return base


@pytest.fixture(scope="module")
def checkpoint(home):
    return next(home.glob("results/*/*/fold_all/checkpoint_final.pth"))


@pytest.fixture(scope="module")
def published(checkpoint, tmp_path_factory):
    """The published folder."""
    return publish(checkpoint, tmp_path_factory.mktemp("published") / "model", CardText("Chest CT", "cc-by-4.0"))


class Server(ThreadingHTTPServer):
    """Serves a folder at ``/files/``, and as the repository ``me/model`` of a Hugging Face hub.

    Attributes:
        folder: what is served.
        break_after: name of a file -> bytes after which the next answers with it break off, one entry an answer.
        asked: every path that was asked for, and the range.
        listed: names that the hub lists beside the folder's files.
        ranges: whether it answers a request for the rest of a file with the rest.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder, self.ranges = folder, True
        self.break_after: dict = {}
        self.asked: list = []
        self.listed: list = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    """See `Server`."""

    server: Server
    protocol_version = "HTTP/1.1"
    commit = "c0ffee" + "0" * 34

    def log_message(self, *_) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET(body=False)

    def do_GET(self, body: bool = True) -> None:
        path = self.path.partition("?")[0]
        self.server.asked.append((path, self.headers.get("Range")))
        names = [file.name for file in sorted(self.server.folder.iterdir())] + self.server.listed
        if re.fullmatch(r"/api/models/me/model/revision/\w+", path):
            return self.json({"id": "me/model", "sha": self.commit, "siblings": [{"rfilename": n} for n in names]})
        if re.fullmatch(r"/api/models/me/model/tree/\w+", path):
            sizes = {n: (self.server.folder / n).stat().st_size for n in names if n not in self.server.listed}
            return self.json(
                [{"type": "file", "path": n, "size": sizes.get(n, 3), "oid": f"{hash(n):040x}"[-40:]} for n in names]
            )
        match = re.fullmatch(r"/(?:files|me/model/resolve/\w+)/(.+)", path)
        if match and (self.server.folder / match[1]).is_file():
            return self.file(self.server.folder / match[1], body)
        return self.send(404, b"{}", {"X-Error-Code": "RepoNotFound" if "/api/" in path else "EntryNotFound"})

    def json(self, content) -> None:
        self.send(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def file(self, path: Path, body: bool) -> None:
        content, start = path.read_bytes(), re.match(r"bytes=(\d+)-", self.headers.get("Range") or "")
        headers = {"ETag": f'"{hash(content):x}"', "X-Repo-Commit": self.commit}
        if start and self.server.ranges and body:
            first = int(start[1])
            if first >= len(content):
                return self.send(416, b"", {})
            headers["Content-Range"] = f"bytes {first}-{len(content) - 1}/{len(content)}"
            return self.send(206, content[first:], headers)
        return self.send(200, content, headers, body)

    def send(self, status: int, content: bytes, headers: dict, body: bool = True) -> None:
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(content))}).items():
            self.send_header(name, value)
        self.end_headers()
        if not body:
            return
        if breaks := self.server.break_after.get(self.path.rpartition("/")[2]):
            content = content[: breaks.pop(0)]
            self.close_connection = True
        self.wfile.write(content)


@pytest.fixture
def serve():
    """Start a server on a folder; all are stopped at the end of the test."""
    servers = []

    def start(folder: Path) -> Server:
        server = Server(folder)
        threading.Thread(target=partial(server.serve_forever, poll_interval=0.02), daemon=True).start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()
