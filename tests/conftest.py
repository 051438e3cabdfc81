"""Tiny seeded models, converted once per session, the engine that holds them, and a daemon that has them."""

import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from rvcd.mlx_engine import Engine, blas
from tests.support import seeded
from tests.support.daemon import Daemon, make_models

blas.preload()


@pytest.fixture(scope="session", autouse=True)
def _own_home(tmp_path_factory: pytest.TempPathFactory) -> "object":
    """No test reads or writes the user's own folders."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RVCD_HOME", str(tmp_path_factory.mktemp("home")))
        yield


@pytest.fixture(scope="session")
def models_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny models in the layouts that are in circulation: content/, rmvpe.pt, voice.pth, voice.index."""
    folder = tmp_path_factory.mktemp("models")
    seeded.content_encoder(folder / "content", seed=1, tiny=True)
    seeded.pitch_model(folder / "rmvpe.pt", seed=2, tiny=True)
    seeded.voice(folder / "voice.pth", seed=3, tiny=True)
    seeded.retrieval_index(folder / "voice.index", vectors=500, width=seeded.feature_width("v2", tiny=True), seed=4)
    return folder


@pytest.fixture(scope="session")
def engine(models_folder: Path) -> Engine:
    """The engine with the tiny base models."""
    return Engine(content_encoder=models_folder / "content", pitch=models_folder / "rmvpe.pt")


@pytest.fixture(scope="session")
def voice(engine: Engine, models_folder: Path) -> "object":
    """The tiny v2 40k voice with f0 and its retrieval index."""
    return engine.load_voice(models_folder / "voice.pth", models_folder / "voice.index")


@pytest.fixture(scope="session")
def stem_16k() -> np.ndarray:
    """Three seconds of synthetic singing at 16 kHz, mono."""
    return seeded.sung_stem(3.0, 16000, seed=5)


@pytest.fixture(scope="session")
def imported_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with models/ and voices/ as a home has them: base models, the voices anna and bert."""
    folder = tmp_path_factory.mktemp("imported")
    make_models(folder)
    return folder


@pytest.fixture
def daemon(tmp_path: Path, imported_models: Path) -> Iterator[Daemon]:
    """A daemon that is not started yet; whatever of it still runs after the test is killed."""
    daemon = Daemon(tmp_path / "home", imported_models)
    yield daemon
    if daemon.process is not None and daemon.process.poll() is None:
        daemon.stop(signal.SIGKILL)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, imported_models: Path) -> Iterator[Daemon]:
    """A daemon that tests share which leave it as it was."""
    daemon = Daemon(tmp_path_factory.mktemp("shared") / "home", imported_models).start()
    daemon.until("idle")
    yield daemon
    assert daemon.stop() == 143
