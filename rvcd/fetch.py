"""Brings the two models that every voice needs: the content encoder and the pitch model.

A file is known by its SHA-256, whoever serves it. Its bytes go into a draft, which a later run continues
where this one stopped; once the draft's hash is right it gets its name, and then it is converted.

huggingface_hub knows addresses, token, proxies and the cache shared with other programs, which is read
but never written. The transfer is ours: `hf_hub_download` (2.4) throws an interrupted file away.
"""

import fcntl
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Literal

from huggingface_hub import constants, get_token, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
from huggingface_hub.utils import hf_raise_for_status, http_stream_backoff  # type: ignore[attr-defined]

from rvcd import __version__, mlx_engine, paths
from rvcd.errors import Code, RvcdError, write_error
from rvcd.mlx_engine.weights import read_header, sha256_of

Role = Literal["content-encoder", "pitch"]
OnProgress = Callable[[Role, int, int], None]
"""Called with the role, the bytes that are here and the bytes there will be."""

# httpx or httpx2, whichever this version of huggingface_hub speaks through.
_TransportError: type[Exception] = HfHubHTTPError.__bases__[0]
_RETRY_WAITS_SECONDS = (0.5, 1.0)
"""Waits before the next connection, for as long as connections bring nothing new."""


@dataclass(frozen=True)
class AssetFile:
    """One file of a hub repository."""

    path: str
    """Within the repository."""
    size_bytes: int
    sha256: tuple[str, ...]
    """Digests to accept: more than one where the same text circulates with other line ends."""

    @property
    def name(self) -> str:
        """Its last part, as which it is kept."""
        return PurePosixPath(self.path).name


@dataclass(frozen=True)
class Asset:
    """A base model in one repository."""

    role: Role
    name: str
    repo: str
    files: tuple[AssetFile, ...]
    """The weights come first; with a config beside them they make a folder in the transformers layout."""
    license_note: str
    """What is said about the licence of the weights, and by whom."""

    @property
    def size_bytes(self) -> int:
        """All files together."""
        return sum(file.size_bytes for file in self.files)


_RMVPE_SHA256 = "6d62215f4306e3ca278246188607209f09af3dc77ed4232efdd069798c4ec193"
_CONTENTVEC_FOLDER = "Resources/embedders/contentvec"

ASSETS: tuple[Asset, ...] = (
    Asset(
        role="content-encoder",
        name="contentvec",
        repo="IAHispano/Applio",
        files=(
            AssetFile(
                f"{_CONTENTVEC_FOLDER}/pytorch_model.bin",
                378_342_945,
                ("d8dd400e054ddf4e6be75dab5a2549db748cc99e756a097c496c099f65a4854e",),
            ),
            AssetFile(
                f"{_CONTENTVEC_FOLDER}/config.json",
                1388,
                ("2ddde063b795d38d9051a7215a092fecf4cfe148b54251e38de51d88d356898b",),
            ),
        ),
        license_note="MIT, as daw-pro credits the models of IAHispano/Applio",
    ),
    Asset(
        role="content-encoder",
        name="contentvec-half",
        repo="lj1995/VoiceConversionWebUI",
        files=(
            AssetFile(
                "hubert_base/pytorch_model.bin",
                189_206_711,
                ("cc8c20f4b90a520757260197a3ff2505705a7adbd20ad9eeaa4e1a9b38442ef5",),
            ),
            AssetFile(
                "hubert_base/config.json",
                1492,
                (
                    "0346950779dfb7f9316fa74ed846e2b8a22a08eedfdc5387b73f327cb1a4a7cf",
                    "19f6df5cafd00a0453e52440890be09193118f2ed573377586112d45b497cba4",
                ),
            ),
        ),
        license_note="MIT, as rmvpe-onnx credits the models of lj1995/VoiceConversionWebUI",
    ),
    Asset(
        role="pitch",
        name="rmvpe",
        repo="lj1995/VoiceConversionWebUI",
        files=(AssetFile("rmvpe.pt", 181_184_272, (_RMVPE_SHA256,)),),
        license_note="MIT, as rmvpe-onnx credits the models of lj1995/VoiceConversionWebUI",
    ),
    Asset(
        role="pitch",
        name="rmvpe",
        repo="IAHispano/Applio",
        files=(AssetFile("Resources/predictors/rmvpe.pt", 181_184_272, (_RMVPE_SHA256,)),),
        license_note="MIT, as daw-pro credits the models of IAHispano/Applio",
    ),
)
"""Sources of the base models; those of one role are tried in this order."""


class _SourceFailedError(Exception):
    """One source will not do; the next may."""

    def __init__(self, code: Code, reason: str) -> None:
        super().__init__(reason)
        self.code = code


def fetch_base_models(
    *,
    roles: Sequence[Role] = ("content-encoder", "pitch"),
    on_progress: OnProgress | None = None,
    directory: Path | None = None,
    assets: Sequence[Asset] = ASSETS,
) -> list[Path]:
    """Download, check and convert what is not installed yet; return the converted files, one for each role.

    Raises `RvcdError`: `hash_mismatch` or `download_failed` when every source of a role failed, `disk_full`,
    `not_writable`, and what converting a checkpoint raises.
    """
    directory = directory or paths.models_dir()
    with _only_one_fetch():
        return [
            _fetch([asset for asset in assets if asset.role == role], directory, on_progress or _ignore)
            for role in roles
        ]


def download(sources: Sequence[Asset], on_progress: OnProgress) -> Path:
    """Bring one model from the first source that serves the right bytes.

    Returns the verified checkpoint, not converted: a file, or a folder in the transformers layout.
    Raises `RvcdError`: `hash_mismatch`, `download_failed`, `disk_full`, `not_writable`.
    """
    failures: list[_SourceFailedError] = []
    for asset in sources:
        try:
            return _download_from(asset, on_progress)
        except _SourceFailedError as failure:
            failures.append(failure)
    codes = {failure.code for failure in failures}
    code = Code.HASH_MISMATCH if Code.HASH_MISMATCH in codes else Code.DOWNLOAD_FAILED
    reasons = "; ".join(str(failure) for failure in failures)
    raise RvcdError(code, f"{sources[0].name} could not be fetched: {reasons}. {_by_hand(sources[0])}")


def _ignore(role: Role, bytes_done: int, bytes_total: int) -> None:
    pass


def _downloads_dir() -> Path:
    return paths.cache_dir() / "downloads"


@contextmanager
def _only_one_fetch() -> Iterator[None]:
    path = _downloads_dir() / ".lock"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("w")
    except OSError as error:
        raise write_error(error, path) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RvcdError(
                Code.DOWNLOAD_FAILED, f"Another `rvcd fetch` is writing to {path.parent}; let it finish first."
            ) from None
        yield


def _fetch(sources: Sequence[Asset], directory: Path, on_progress: OnProgress) -> Path:
    installed = _installed(sources, directory)
    if installed is not None:
        return installed
    checkpoint = download(sources, on_progress)
    model = mlx_engine.import_checkpoint(checkpoint, index=None, directory=directory, name=checkpoint.stem)
    shutil.rmtree(checkpoint if checkpoint.is_dir() else checkpoint.parent)
    return model.path


def _installed(sources: Sequence[Asset], directory: Path) -> Path | None:
    wanted = {digest for asset in sources for digest in asset.files[0].sha256}
    for path in sorted(directory.glob("*.safetensors")):
        try:
            header = read_header(path)
        except RvcdError:
            continue
        if header.kind == sources[0].role and wanted.intersection(header.provenance["sources"].values()):
            return path
    return None


def _download_from(asset: Asset, on_progress: OnProgress) -> Path:
    folder = _downloads_dir() / asset.name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _check_room(asset, folder)
        bytes_before = 0
        for file in asset.files:
            _bring(asset, file, folder / file.name, partial(_report, asset, on_progress, bytes_before))
            bytes_before += file.size_bytes
    except OSError as error:
        raise write_error(error, folder) from error
    on_progress(asset.role, asset.size_bytes, asset.size_bytes)
    return folder if len(asset.files) > 1 else folder / asset.files[0].name


def _report(asset: Asset, on_progress: OnProgress, bytes_before: int, bytes_done: int) -> None:
    on_progress(asset.role, min(bytes_before + bytes_done, asset.size_bytes), asset.size_bytes)


def _check_room(asset: Asset, folder: Path) -> None:
    here = sum(path.stat().st_size for path in folder.iterdir())
    missing = asset.size_bytes - here
    if missing > shutil.disk_usage(folder).free:
        raise RvcdError(
            Code.DISK_FULL, f"{asset.name} needs {missing / 1e6:.0f} MB more than the disk of {folder} has free."
        )


def _bring(asset: Asset, file: AssetFile, target: Path, report: Callable[[int], None]) -> None:
    """Make `target` a file with an accepted hash: already here, in the shared cache, or from the network."""
    if target.exists() and sha256_of(target) in file.sha256:
        return
    target.unlink(missing_ok=True)
    cached = try_to_load_from_cache(asset.repo, file.path)
    if isinstance(cached, str) and sha256_of(Path(cached)) in file.sha256:
        target.symlink_to(Path(cached).resolve())
        return
    url = hf_hub_url(asset.repo, file.path)
    draft = target.with_name(f"{file.sha256[0][:16]}.part")
    continued = draft.exists()
    found = _receive(url, file, draft, report)
    if found not in file.sha256 and continued:  # the fault may lie in what an earlier run left
        found = _receive(url, file, draft, report)
    if found not in file.sha256:
        raise _SourceFailedError(
            Code.HASH_MISMATCH,
            f"{file.name} from {url} has SHA-256 {found} where {' or '.join(file.sha256)} is expected",
        )
    draft.replace(target)


def _receive(url: str, file: AssetFile, draft: Path, report: Callable[[int], None]) -> str:
    """Complete the draft and return its SHA-256; a draft with a wrong one is deleted."""
    waits = iter(_RETRY_WAITS_SECONDS)
    while True:
        bytes_before = _size_bytes(draft)
        try:
            _receive_once(url, file, draft, report)
            break
        except OfflineModeIsEnabled:
            raise _SourceFailedError(Code.DOWNLOAD_FAILED, "HF_HUB_OFFLINE forbids every request") from None
        except HfHubHTTPError as error:
            raise _SourceFailedError(Code.DOWNLOAD_FAILED, _refusal(url, error.response.status_code)) from error
        except _TransportError as error:
            if _size_bytes(draft) > bytes_before:
                waits = iter(_RETRY_WAITS_SECONDS)
            wait_seconds = next(waits, None)
            if wait_seconds is None:
                reason = f"{url} cannot be reached ({str(error) or type(error).__name__})"
                raise _SourceFailedError(Code.DOWNLOAD_FAILED, reason) from error
            time.sleep(wait_seconds)
    found = sha256_of(draft)
    if found not in file.sha256:
        draft.unlink()
    return found


def _receive_once(url: str, file: AssetFile, draft: Path, report: Callable[[int], None]) -> None:
    bytes_done = _size_bytes(draft)
    with http_stream_backoff(
        "GET",
        url,
        headers=_headers(bytes_done),
        timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT,
        max_retries=len(_RETRY_WAITS_SECONDS),
        base_wait_time=_RETRY_WAITS_SECONDS[0],
        retry_on_exceptions=(),
    ) as response:
        if (
            response.status_code == 416 and bytes_done
        ):  # nothing is missing: an earlier run ended between the last byte and the hash
            return
        hf_raise_for_status(response)
        continues = response.status_code == 206
        bytes_done = bytes_done if continues else 0
        with draft.open("ab" if continues else "wb") as draft_file:
            for chunk in response.iter_bytes():
                draft_file.write(chunk)
                bytes_done += len(chunk)
                report(bytes_done)
                if bytes_done > file.size_bytes:  # not our file; an endless one must not fill the disk
                    return


def _headers(bytes_done: int) -> dict[str, str]:
    # The library's own `build_hf_headers` would first ask the hub how to describe this machine's user.
    headers = {"User-Agent": f"rvcd/{__version__}", "Accept-Encoding": "identity"}  # ranges count the file's own bytes
    token = None if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN else get_token()
    if token:
        headers["Authorization"] = f"Bearer {token}"
    if bytes_done:
        headers["Range"] = f"bytes={bytes_done}-"
    return headers


def _size_bytes(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _refusal(url: str, status: int) -> str:
    hint = " (log in with `hf auth login` or set HF_TOKEN)" if status in (401, 403) else ""
    return f"{url} answered {status}{hint}"


def _by_hand(asset: Asset) -> str:
    urls = " and ".join(hf_hub_url(asset.repo, file.path) for file in asset.files)
    place, argument = (" into one folder", "FOLDER") if len(asset.files) > 1 else ("", "FILE")
    return (
        "Check the network, set HF_ENDPOINT to a mirror of the hub, "
        f"or download {urls} by hand{place} and run `rvcd import {argument}`."
    )
