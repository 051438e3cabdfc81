import fcntl
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from rvcd.errors import Code
from rvcd.fetch import ASSETS, Asset, AssetFile
from rvcd.mlx_engine.weights import read_header
from tests.support import seeded
from tests.support.fake_hub import FakeHub, Fault, running_hub

REPO, MIRROR = "someone/models", "someone-else/models"
BODY = bytes(range(256)) * 2000

# The client runs as its own process: huggingface_hub reads its environment once, when it is imported.
CLIENT = """
import json, resource, sys
from pathlib import Path
from rvcd import fetch
from rvcd.errors import RvcdError

request = json.load(sys.stdin)
if request["largest_file_bytes"]:
    resource.setrlimit(resource.RLIMIT_FSIZE, (request["largest_file_bytes"],) * 2)
assets = [
    fetch.Asset(**{**asset, "files": tuple(fetch.AssetFile(**file) for file in asset["files"])})
    for asset in request["assets"]
]
progress = []
def on_progress(*step): progress.append(step)
answer = {"progress": progress}
try:
    if request["install"]:
        where = {"directory": Path(request["directory"])} if request["directory"] else {}
        found = fetch.fetch_base_models(roles=request["install"], on_progress=on_progress, assets=assets, **where)
    else:
        found = [fetch.download(assets, on_progress)]
    answer["paths"] = [str(path) for path in found]
except RvcdError as error:
    answer |= {"code": error.code, "sentence": error.sentence}
json.dump(answer, sys.stdout)
"""


@dataclass
class Client:
    """`rvcd.fetch` in a process with its own home and hub cache."""

    home: Path
    endpoint: str
    environment: dict[str, str] = field(default_factory=dict)

    def start(
        self,
        assets: list[Asset],
        install: tuple[str, ...] = (),
        directory: Path | None = None,
        largest_file_bytes: int = 0,
    ) -> subprocess.Popen[str]:
        """Begin to download the assets of one role, or to install those of the named roles."""
        request = {
            "assets": [asdict(asset) for asset in assets],
            "install": install,
            "directory": str(directory or ""),
            "largest_file_bytes": largest_file_bytes,
        }
        process = self.start_process([sys.executable, "-c", CLIENT])
        assert process.stdin
        process.stdin.write(json.dumps(request))
        process.stdin.close()
        process.stdin = None
        return process

    def start_process(self, command: list[str]) -> subprocess.Popen[str]:
        inherited = {name: os.environ[name] for name in ("PATH", "PYTHONPATH", "LANG") if name in os.environ}
        own = {
            "HOME": str(self.home),
            "RVCD_HOME": str(self.home / "rvcd"),
            "HF_HOME": str(self.home / "hub"),
            "HF_ENDPOINT": self.endpoint,
            "HF_HUB_DOWNLOAD_TIMEOUT": "1",
            "OMP_NUM_THREADS": "1",
        }
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[1],
            env=inherited | own | self.environment,
        )

    def run(self, assets: list[Asset], install: tuple[str, ...] = (), **options: Any) -> dict[str, Any]:
        with self.start(assets, install, **options) as process:
            out, err = process.communicate()
        assert process.returncode == 0, err
        answer: dict[str, Any] = json.loads(out)
        return answer

    def files(self) -> set[str]:
        """What lies in the home, by name."""
        root = self.home / "rvcd"
        return {path.name for path in root.rglob("*") if path.is_file() and path.name != ".lock"}


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with running_hub() as hub:
        yield hub


@pytest.fixture
def client(hub: FakeHub, tmp_path: Path) -> Client:
    return Client(tmp_path, hub.url)


def sha256(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def pitch_asset(body: bytes = BODY, repo: str = REPO) -> Asset:
    return Asset("pitch", "rmvpe", repo, (AssetFile("f0/rmvpe.pt", len(body), (sha256(body),)),), "none")


def folder_asset(weights: bytes, config: bytes) -> Asset:
    files = (
        AssetFile("encoder/pytorch_model.bin", len(weights), (sha256(weights),)),
        AssetFile("encoder/config.json", len(config), (sha256(config),)),
    )
    return Asset("content-encoder", "contentvec", REPO, files, "none")


def test_a_file_arrives_whole_and_progress_counts_its_bytes(hub: FakeHub, client: Client) -> None:
    hub.put(REPO, "f0/rmvpe.pt", BODY)
    answer = client.run([pitch_asset()])
    assert Path(answer["paths"][0]).name == "rmvpe.pt"
    assert Path(answer["paths"][0]).read_bytes() == BODY
    steps = [step[1] for step in answer["progress"]]
    assert steps == sorted(steps)
    assert answer["progress"][-1] == ["pitch", len(BODY), len(BODY)]
    (only,) = hub.seen
    assert (only.method, only.path) == ("GET", f"/{REPO}/resolve/main/f0/rmvpe.pt")
    assert (only.user_agent or "").startswith("rvcd/")


def test_a_model_with_a_config_arrives_as_one_folder_and_one_progress(hub: FakeHub, client: Client) -> None:
    hub.put(REPO, "encoder/pytorch_model.bin", BODY)
    hub.put(REPO, "encoder/config.json", b"{}")
    answer = client.run([folder_asset(BODY, b"{}")])
    folder = Path(answer["paths"][0])
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        "pytorch_model.bin": BODY,
        "config.json": b"{}",
    }
    assert {step[2] for step in answer["progress"]} == {len(BODY) + 2}


def test_a_cut_download_goes_on_where_it_was_cut(hub: FakeHub, client: Client) -> None:
    hub.put(REPO, "f0/rmvpe.pt", BODY)
    hub.misbehave(REPO, "f0/rmvpe.pt", *[Fault("truncate", 100_000)] * 3)
    answer = client.run([pitch_asset()])
    assert Path(answer["paths"][0]).read_bytes() == BODY
    ranges = [None, "bytes=100000-", "bytes=200000-", "bytes=300000-"]
    assert [seen.range for seen in hub.downloads()] == ranges


def test_a_server_that_never_brings_anything_is_given_up(hub: FakeHub, client: Client) -> None:
    hub.put(REPO, "f0/rmvpe.pt", BODY)
    hub.put(MIRROR, "f0/rmvpe.pt", BODY)
    hub.misbehave(REPO, "f0/rmvpe.pt", *[Fault("truncate", 0)] * 3)
    answer = client.run([pitch_asset(), pitch_asset(repo=MIRROR)])
    assert Path(answer["paths"][0]).read_bytes() == BODY
    assert hub.downloads()[-1].path.startswith(f"/{MIRROR}")
    assert len(hub.downloads()) == 4


@pytest.mark.timeout(15)
def test_a_server_that_falls_silent_is_left_and_asked_again(hub: FakeHub, client: Client) -> None:
    hub.put(REPO, "f0/rmvpe.pt", BODY)
    hub.misbehave(REPO, "f0/rmvpe.pt", Fault("stall", 70_000))
    answer = client.run([pitch_asset()])
    assert Path(answer["paths"][0]).read_bytes() == BODY
    assert [seen.range for seen in hub.downloads()] == [None, "bytes=70000-"]


def test_a_killed_fetch_is_continued_by_the_next_one(hub: FakeHub, client: Client) -> None:
    hub.put(REPO, "f0/rmvpe.pt", BODY)
    hub.misbehave(REPO, "f0/rmvpe.pt", Fault("stall", 300_000))
    client.environment["HF_HUB_DOWNLOAD_TIMEOUT"] = "60"
    with client.start([pitch_asset()]) as process:
        assert hub.stalled.wait(30)
        wait_for_bytes(client.home / "rvcd/cache/downloads/rmvpe", process)
        process.send_signal(signal.SIGKILL)
    assert "rmvpe.pt" not in client.files()
    answer = client.run([pitch_asset()])
    assert Path(answer["paths"][0]).read_bytes() == BODY
    first, second = hub.downloads()
    assert first.range is None
    assert second.range is not None
    assert second.range != "bytes=0-"


def wait_for_bytes(folder: Path, process: subprocess.Popen[str]) -> None:
    """Until the draft holds something: the client's own progress is not visible from outside."""
    while process.poll() is None:
        if any(path.stat().st_size for path in folder.glob("*.part")):
            return
    raise AssertionError("the client ended before it wrote anything")


def test_a_server_without_ranges_sends_the_file_again(hub: FakeHub, client: Client) -> None:
    hub.put(REPO, "f0/rmvpe.pt", BODY)
    hub.misbehave(REPO, "f0/rmvpe.pt", Fault("truncate", 100_000), Fault("ignore_range"))
    answer = client.run([pitch_asset()])
    assert Path(answer["paths"][0]).read_bytes() == BODY


def test_a_draft_with_foreign_bytes_is_thrown_away_and_the_file_fetched_anew(hub: FakeHub, client: Client) -> None:
    hub.put(REPO, "f0/rmvpe.pt", BODY)
    leave_draft(client, b"x" * 1000)
    answer = client.run([pitch_asset()])
    assert Path(answer["paths"][0]).read_bytes() == BODY
    assert [seen.range for seen in hub.downloads()] == ["bytes=1000-", None]


def test_a_draft_that_lacked_only_its_name_is_not_downloaded_again(hub: FakeHub, client: Client) -> None:
    hub.put(REPO, "f0/rmvpe.pt", BODY)
    leave_draft(client, BODY)
    answer = client.run([pitch_asset()])
    assert Path(answer["paths"][0]).read_bytes() == BODY
    assert [seen.range for seen in hub.downloads()] == [f"bytes={len(BODY)}-"]


def leave_draft(client: Client, body: bytes) -> None:
    folder = client.home / "rvcd/cache/downloads/rmvpe"
    folder.mkdir(parents=True)
    (folder / f"{sha256(BODY)[:16]}.part").write_bytes(body)


def test_the_token_goes_to_the_hub_and_not_to_where_it_redirects(hub: FakeHub, client: Client) -> None:
    client.environment["HF_TOKEN"] = "hf_secret"
    with running_hub() as storage:
        storage.put(REPO, "f0/rmvpe.pt", BODY)
        storage.misbehave(REPO, "f0/rmvpe.pt", Fault("truncate", 100_000))
        hub.redirect_to = storage.url
        answer = client.run([pitch_asset()])
    assert Path(answer["paths"][0]).read_bytes() == BODY
    assert {seen.authorization for seen in hub.seen} == {"Bearer hf_secret"}
    assert {seen.authorization for seen in storage.seen} == {None}
    assert [seen.range for seen in storage.seen] == [None, "bytes=100000-"]


def test_wrong_bytes_are_named_and_nothing_of_them_stays(hub: FakeHub, client: Client) -> None:
    wrong = BODY[:-1] + b"!"
    hub.put(REPO, "f0/rmvpe.pt", wrong)
    answer = client.run([pitch_asset()], install=("pitch",))
    assert answer["code"] == Code.HASH_MISMATCH
    for part in ("rmvpe.pt", sha256(wrong), sha256(BODY), f"{hub.url}/{REPO}"):
        assert part in answer["sentence"]
    assert client.files() == set()

    hub.put(REPO, "f0/rmvpe.pt", BODY)
    answer = client.run([pitch_asset()])
    assert Path(answer["paths"][0]).read_bytes() == BODY
    assert [seen.range for seen in hub.downloads()] == [None, None]


def test_a_body_longer_than_the_file_is_not_read_to_its_end(hub: FakeHub, client: Client) -> None:
    hub.put(REPO, "f0/rmvpe.pt", b"page" * 5_000_000)
    answer = client.run([pitch_asset(b"tiny")], largest_file_bytes=10_000_000)
    assert answer["code"] == Code.HASH_MISMATCH


@pytest.mark.parametrize("fault", [None, Fault("status", status=403)], ids=["wrong bytes", "refused"])
def test_the_second_source_serves_when_the_first_does_not(hub: FakeHub, client: Client, fault: Fault | None) -> None:
    hub.put(REPO, "f0/rmvpe.pt", b"wrong")
    hub.put(MIRROR, "f0/rmvpe.pt", BODY)
    if fault is not None:
        hub.misbehave(REPO, "f0/rmvpe.pt", fault)
    answer = client.run([pitch_asset(), pitch_asset(repo=MIRROR)])
    assert Path(answer["paths"][0]).read_bytes() == BODY


def test_a_missing_file_says_where_it_was_looked_for_and_what_to_do(hub: FakeHub, client: Client) -> None:
    answer = client.run([pitch_asset(), pitch_asset(repo=MIRROR)])
    assert answer["code"] == Code.DOWNLOAD_FAILED
    for part in ("404", f"{hub.url}/{REPO}", f"{hub.url}/{MIRROR}", "HF_ENDPOINT", "rvcd import FILE"):
        assert part in answer["sentence"]


def test_a_closed_door_asks_for_a_token(hub: FakeHub, client: Client) -> None:
    hub.put(REPO, "f0/rmvpe.pt", BODY)
    hub.misbehave(REPO, "f0/rmvpe.pt", Fault("status", status=401))
    answer = client.run([pitch_asset()])
    assert answer["code"] == Code.DOWNLOAD_FAILED
    assert "HF_TOKEN" in answer["sentence"]


def test_a_hiccup_of_the_server_is_waited_out(hub: FakeHub, client: Client) -> None:
    hub.put(REPO, "f0/rmvpe.pt", BODY)
    hub.misbehave(REPO, "f0/rmvpe.pt", Fault("status", status=500))
    answer = client.run([pitch_asset()])
    assert Path(answer["paths"][0]).read_bytes() == BODY


def test_nobody_listening_is_a_failed_download(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{free.getsockname()[1]}"
        answer = Client(tmp_path, endpoint).run([pitch_asset()])
    assert answer["code"] == Code.DOWNLOAD_FAILED
    assert endpoint in answer["sentence"]


@pytest.mark.parametrize("endpoint", ["hub.example", "ftp://hub.example"])
def test_an_endpoint_that_is_no_address_is_named(tmp_path: Path, endpoint: str) -> None:
    answer = Client(tmp_path, endpoint).run([pitch_asset()])
    assert answer["code"] == Code.DOWNLOAD_FAILED
    assert f" {endpoint}/{REPO}" in answer["sentence"]


def test_offline_mode_is_respected_and_named(hub: FakeHub, client: Client) -> None:
    client.environment["HF_HUB_OFFLINE"] = "1"
    answer = client.run([pitch_asset()])
    assert answer["code"] == Code.DOWNLOAD_FAILED
    assert "HF_HUB_OFFLINE" in answer["sentence"]
    assert hub.seen == []


def test_the_proxy_of_the_environment_is_used(hub: FakeHub, client: Client) -> None:
    hub.put(REPO, "f0/rmvpe.pt", BODY)
    client.endpoint = "http://hub.invalid"
    client.environment["HTTP_PROXY"] = hub.url
    answer = client.run([pitch_asset()])
    assert Path(answer["paths"][0]).read_bytes() == BODY
    assert hub.seen[0].path.startswith("http://hub.invalid/")


def test_a_file_in_the_shared_cache_is_not_downloaded(hub: FakeHub, client: Client) -> None:
    hub.put(REPO, "f0/rmvpe.pt", BODY)
    store = f"from huggingface_hub import hf_hub_download; hf_hub_download({REPO!r}, 'f0/rmvpe.pt')"
    environment = {"HF_HOME": str(client.home / "hub"), "HF_ENDPOINT": hub.url, "PATH": os.environ["PATH"]}
    subprocess.run([sys.executable, "-c", store], check=True, env=environment, capture_output=True)
    hub.seen.clear()
    answer = client.run([pitch_asset()])
    assert Path(answer["paths"][0]).read_bytes() == BODY
    assert hub.seen == []


def test_either_line_ending_of_a_config_is_accepted(hub: FakeHub, client: Client) -> None:
    config = b"{\r\n}\r\n"
    asset = folder_asset(BODY, config)
    weights_file, config_file = asset.files
    unix = config.replace(b"\r", b"")
    either = replace(config_file, sha256=(sha256(config), sha256(unix)))
    hub.put(REPO, "encoder/pytorch_model.bin", BODY)
    hub.put(REPO, "encoder/config.json", unix)
    answer = client.run([replace(asset, files=(weights_file, either))])
    assert (Path(answer["paths"][0]) / "config.json").read_bytes() == unix


def test_too_little_room_is_told_before_anything_is_asked(hub: FakeHub, client: Client) -> None:
    asset = pitch_asset()
    huge = replace(asset, files=(replace(asset.files[0], size_bytes=10**18),))
    answer = client.run([huge])
    assert answer["code"] == Code.DISK_FULL
    assert hub.seen == []


def test_a_disk_that_fills_up_ends_the_download(hub: FakeHub, client: Client) -> None:
    hub.put(REPO, "f0/rmvpe.pt", BODY)
    answer = client.run([pitch_asset(), pitch_asset(repo=MIRROR)], largest_file_bytes=100_000)
    assert answer["code"] == Code.DISK_FULL
    assert str(client.home / "rvcd/cache/downloads") in answer["sentence"]
    assert len(hub.downloads()) == 1  # another source would not help


def test_a_home_that_is_no_folder_is_named(hub: FakeHub, client: Client) -> None:
    (client.home / "rvcd").write_text("in the way")
    answer = client.run([pitch_asset()], install=("pitch",))
    assert answer["code"] == Code.NOT_WRITABLE
    assert str(client.home / "rvcd") in answer["sentence"]


def test_only_one_fetch_writes_at_a_time(hub: FakeHub, client: Client) -> None:
    folder = client.home / "rvcd/cache/downloads"
    folder.mkdir(parents=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        answer = client.run([pitch_asset()], install=("pitch",))
    assert answer["code"] == Code.DOWNLOAD_FAILED
    assert "Another" in answer["sentence"]
    assert hub.seen == []


def test_what_is_no_checkpoint_is_not_installed_and_not_downloaded_twice(hub: FakeHub, client: Client) -> None:
    hub.put(REPO, "f0/rmvpe.pt", BODY)
    for _ in range(2):
        answer = client.run([pitch_asset()], install=("pitch",))
        assert answer["code"] == Code.NOT_A_CHECKPOINT
    assert len(hub.downloads()) == 1
    assert not list(client.home.rglob("*.safetensors"))


def test_half_a_model_is_completed_and_not_begun_again(hub: FakeHub, client: Client) -> None:
    hub.put(REPO, "encoder/pytorch_model.bin", BODY)
    asset = folder_asset(BODY, b"{}")
    assert client.run([asset])["code"] == Code.DOWNLOAD_FAILED
    hub.put(REPO, "encoder/config.json", b"{}")
    hub.seen.clear()
    assert "paths" in client.run([asset])
    assert [Path(seen.path).name for seen in hub.seen] == ["config.json"]


@pytest.fixture
def tiny_assets(hub: FakeHub, tmp_path: Path) -> list[Asset]:
    """Real checkpoints of both roles, published on the hub."""
    folder = seeded.content_encoder(tmp_path / "published", tiny=True)
    weights, config = ((folder / name).read_bytes() for name in ("pytorch_model.bin", "config.json"))
    pitch = seeded.pitch_model(tmp_path / "rmvpe.pt", tiny=True).read_bytes()
    hub.put(REPO, "encoder/pytorch_model.bin", weights)
    hub.put(REPO, "encoder/config.json", config)
    hub.put(REPO, "f0/rmvpe.pt", pitch)
    return [folder_asset(weights, config), pitch_asset(pitch)]


def test_both_models_are_installed_once(hub: FakeHub, client: Client, tiny_assets: list[Asset]) -> None:
    roles = ("content-encoder", "pitch")
    first = client.run(tiny_assets, install=roles)
    headers = [read_header(Path(path)) for path in first["paths"]]
    assert tuple(header.kind for header in headers) == roles
    assert [header.name for header in headers] == ["contentvec", "rmvpe"]
    for header, asset in zip(headers, tiny_assets, strict=True):
        assert header.path.parent == client.home / "rvcd/models"
        assert asset.files[0].sha256[0] in header.provenance["sources"].values()
    assert client.files() == {header.path.name for header in headers}  # the downloads are gone

    hub.seen.clear()
    second = client.run(tiny_assets, install=roles)
    assert second == {"progress": [], "paths": first["paths"]}
    assert hub.seen == []


def test_a_model_from_the_second_source_counts_as_installed(
    hub: FakeHub, client: Client, tiny_assets: list[Asset]
) -> None:
    pitch = tiny_assets[1]
    other = replace(pitch, files=(AssetFile("f0/other.pt", 5, (sha256(b"other"),)),))
    first = client.run([other, pitch], install=("pitch",))
    hub.put(REPO, "f0/other.pt", b"other")
    hub.seen.clear()
    assert client.run([other, pitch], install=("pitch",))["paths"] == first["paths"]
    assert hub.seen == []


def test_models_go_where_they_are_wanted(client: Client, tiny_assets: list[Asset], tmp_path: Path) -> None:
    answer = client.run(tiny_assets, install=("pitch",), directory=tmp_path / "elsewhere")
    assert Path(answer["paths"][0]).parent == tmp_path / "elsewhere"


def test_the_command_asks_for_the_published_files_and_says_what_failed(hub: FakeHub, client: Client) -> None:
    with client.start_process([sys.executable, "-m", "rvcd", "fetch"]) as process:
        _, err = process.communicate()
    assert process.returncode == 1
    assert "rvcd import FOLDER" in err
    assert [seen.path for seen in hub.seen] == [
        "/IAHispano/Applio/resolve/main/Resources/embedders/contentvec/pytorch_model.bin",
        "/lj1995/VoiceConversionWebUI/resolve/main/hubert_base/pytorch_model.bin",
    ]


def test_every_role_has_two_sources_and_every_file_a_full_hash() -> None:
    for role in ("content-encoder", "pitch"):
        assert len({asset.repo for asset in ASSETS if asset.role == role}) == 2
    digests = [digest for asset in ASSETS for file in asset.files for digest in file.sha256]
    assert all(len(digest) == 64 and int(digest, 16) for digest in digests)
