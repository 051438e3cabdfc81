"""The commands with a real engine: tiny seeded models, real files, real processes."""

import hashlib
import json
import os
import pty
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
import pytest
import soundfile

from rvcd.cli import main
from tests.support import seeded
from tests.support.fake_hub import FakeHub, running_hub

Done = subprocess.CompletedProcess[str]


def command(arguments: Sequence[object]) -> list[str]:
    return [sys.executable, "-m", "rvcd", *map(str, arguments)]


def environment(home: Path) -> dict[str, str]:
    return {**os.environ, "RVCD_HOME": str(home), "OMP_NUM_THREADS": "1"}


def run_rvcd(home: Path, *arguments: object) -> Done:
    return subprocess.run(command(arguments), capture_output=True, text=True, env=environment(home), check=False)


def json_of(done: Done) -> Any:
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny originals, in the layouts that are in circulation."""
    folder = tmp_path_factory.mktemp("sources")
    seeded.voice(folder / "Anna.pth", tiny=True)
    seeded.voice(folder / "Whisper.pth", tiny=True, f0=False, seed=1)
    seeded.retrieval_index(folder / "added_Anna_v2.index", vectors=200, width=seeded.feature_width("v2", tiny=True))
    (folder / "contentvec").mkdir()
    seeded.content_encoder(folder / "contentvec", tiny=True)
    seeded.pitch_model(folder / "rmvpe.pt", tiny=True)
    return folder


@pytest.fixture(scope="module")
def library(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with a voice and both base models, imported by one command."""
    home = tmp_path_factory.mktemp("library")
    names = ("Anna.pth", "added_Anna_v2.index", "contentvec", "rmvpe.pt")
    done = run_rvcd(home, "import", *(sources / name for name in names))
    assert (done.returncode, done.stderr) == (0, "")
    return home


@pytest.fixture
def stem(tmp_path: Path) -> Path:
    path = tmp_path / "lead.wav"
    mono = seeded.sung_stem(1.5, 44_100)
    soundfile.write(path, np.stack([mono, 0.5 * mono], axis=1), 44_100, "PCM_24")
    return path


def test_import_puts_each_kind_in_its_place_and_pairs_the_index(sources: Path, library: Path) -> None:
    [entry] = json_of(run_rvcd(library, "voices", "--json"))
    assert (entry["name"], entry["version"], entry["sample_rate"], entry["index_vectors"]) == (
        "Anna",
        "v2",
        40_000,
        200,
    )
    assert entry["uses_f0"] is True
    assert sorted(entry["sources"]) == ["Anna.pth", "added_Anna_v2.index"]
    assert len(list((library / "models").iterdir())) == 2
    assert "Anna" in run_rvcd(library, "voices").stdout


def test_importing_again_changes_nothing_and_says_so(sources: Path, library: Path) -> None:
    before = sorted(library.rglob("*"))
    arguments = ["import", sources / "Anna.pth", sources / "added_Anna_v2.index", "--json"]
    [imported] = json_of(run_rvcd(library, *arguments))
    assert (imported["name"], imported["kind"], imported["fresh"]) == ("Anna", "voice", False)
    assert sorted(library.rglob("*")) == before


def test_a_zip_is_imported_under_the_given_name(sources: Path, tmp_path: Path) -> None:
    with ZipFile(tmp_path / "download.zip", "w") as archive:
        archive.write(sources / "Anna.pth", "pack/weights/model.pth")
        archive.write(sources / "added_Anna_v2.index", "pack/index/any.index")
    home = tmp_path / "home"
    done = run_rvcd(home, "import", tmp_path / "download.zip", "--name", "Zoë/live")
    assert (done.returncode, done.stderr) == (0, "")
    [entry] = json_of(run_rvcd(home, "voices", "--json"))
    assert (entry["name"], entry["index_vectors"]) == ("Zoë/live", 200)
    assert Path(entry["path"]).parent == home / "voices"


def test_what_fails_to_import_does_not_stop_the_rest(sources: Path, tmp_path: Path) -> None:
    junk = tmp_path / "junk.pth"
    junk.write_bytes(b"junk" * 100)
    done = run_rvcd(tmp_path / "home", "import", junk, tmp_path / "gone.pth", sources / "Anna.pth", "--json")
    assert done.returncode == 1
    first, second, third = json_of(done)
    assert first["error"]["code"] == "not_a_checkpoint"
    assert second["error"]["code"] == "not_found"
    assert third["error"] is None
    assert Path(third["path"]).is_file()
    assert done.stderr.count("rvcd: ") == 2
    assert "Traceback" not in done.stderr


def test_one_name_for_two_voices_is_bad_usage(sources: Path, tmp_path: Path) -> None:
    done = run_rvcd(tmp_path / "home", "import", sources / "Anna.pth", sources / "Whisper.pth", "--name", "Mia")
    assert done.returncode == 2
    assert done.stderr.startswith("rvcd: bad_setting: ")
    assert not list((tmp_path / "home").rglob("*.safetensors"))


def test_a_folder_is_imported_with_its_index_and_its_readme_passed_over(sources: Path, tmp_path: Path) -> None:
    folder = tmp_path / "Anna"
    (folder / "index").mkdir(parents=True)
    shutil.copy(sources / "Anna.pth", folder)
    shutil.copy(sources / "added_Anna_v2.index", folder / "index")
    (folder / "readme.txt").write_text("sing well")
    done = run_rvcd(tmp_path / "home", "import", folder, "--json")
    [result] = json_of(done)
    assert (done.returncode, done.stderr) == (0, "")
    assert (result["source"], result["name"]) == (str(folder / "Anna.pth"), "Anna")
    assert result["index"] == str(folder / "index" / "added_Anna_v2.index")


def test_a_folder_without_models_and_a_damaged_voice_in_one_are_told(sources: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "mixed").mkdir()
    for name in ("one.pth", "two.pth"):
        (tmp_path / "mixed" / name).write_bytes(b"junk" * 100)
    done = run_rvcd(tmp_path / "home", "import", tmp_path / "empty", tmp_path / "mixed", "--json")
    assert [Path(result["source"]).name for result in json_of(done)] == ["empty", "one.pth", "two.pth"]
    assert {result["error"]["code"] for result in json_of(done)} == {"not_a_checkpoint"}


def test_epochs_of_one_training_keep_their_whole_names(sources: Path, tmp_path: Path) -> None:
    shutil.copy(sources / "Anna.pth", tmp_path / "Mia_e10_s100.pth")
    shutil.copy(sources / "Whisper.pth", tmp_path / "Mia_e20_s200.pth")
    home = tmp_path / "home"
    assert run_rvcd(home, "import", *sorted(tmp_path.glob("Mia*"))).returncode == 0
    assert [e["name"] for e in json_of(run_rvcd(home, "voices", "--json"))] == ["Mia_e10_s100", "Mia_e20_s200"]


def test_two_voices_with_one_file_name_never_replace_each_other(sources: Path, tmp_path: Path) -> None:
    for name in ("Anna", "Whisper"):
        (tmp_path / name).mkdir()
        shutil.copy(sources / f"{name}.pth", tmp_path / name / "model.pth")
    done = run_rvcd(tmp_path / "home", "import", tmp_path / "Anna", tmp_path / "Whisper", "--json")
    assert done.returncode == 1
    assert sorted(str(result["error"] and result["error"]["code"]) for result in json_of(done)) == [
        "None",
        "bad_setting",
    ]


def test_an_index_of_the_wrong_width_is_not_passed_over(sources: Path, tmp_path: Path) -> None:
    wrong = seeded.retrieval_index(tmp_path / "wrong.index", vectors=100, width=48)
    done = run_rvcd(tmp_path / "home", "import", sources / "Anna.pth", wrong)
    assert done.returncode == 1
    assert done.stderr.startswith("rvcd: index_width: ")


def test_the_base_model_imported_last_is_the_one_in_use(sources: Path, tmp_path: Path) -> None:
    other = seeded.pitch_model(tmp_path / "other.pt", tiny=True, seed=9)
    home = tmp_path / "home"
    used = []
    for pitch in (sources / "rmvpe.pt", other, sources / "rmvpe.pt"):
        [result] = json_of(run_rvcd(home, "import", pitch, "--json"))
        used.append(result["path"])
        newest = max((home / "models").iterdir(), key=lambda path: path.stat().st_mtime_ns)
        assert str(newest) == result["path"]
    assert used[0] == used[2] != used[1]


def test_an_index_without_its_voice_is_refused(sources: Path, tmp_path: Path) -> None:
    done = run_rvcd(tmp_path / "home", "import", sources / "added_Anna_v2.index")
    assert done.returncode == 1
    assert ".pth" in done.stderr


@pytest.mark.parametrize("name", ["Anna.pth", "added_Anna_v2.index", "contentvec", "rmvpe.pt"])
def test_inspect_says_what_a_file_is_without_mlx(sources: Path, name: str) -> None:
    program = f"""
import sys
from rvcd.cli import main
code = main(["inspect", {str(sources / name)!r}, "--json"])
assert "mlx" not in sys.modules
sys.exit(code)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert json_of(done)["usable"] is True
    text = run_rvcd(sources, "inspect", sources / name)
    assert text.returncode == 0
    assert text.stdout


def test_inspect_says_why_a_file_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "junk.pth").write_bytes(b"junk" * 100)
    done = run_rvcd(tmp_path, "inspect", tmp_path / "junk.pth", "--json")
    assert done.returncode == 1
    document = json_of(done)
    assert document["usable"] is False
    assert document["code"] == "not_a_checkpoint"


def test_convert_writes_a_sibling_in_the_stems_own_format(library: Path, stem: Path) -> None:
    done = run_rvcd(library, "convert", stem, "--voice", "anna", "--semitones=-3.5")
    assert done.returncode == 0
    target = stem.with_name("lead.Anna.wav")
    before, after = soundfile.info(stem), soundfile.info(target)
    assert (after.frames, after.samplerate, after.channels, after.format, after.subtype) == (
        before.frames,
        before.samplerate,
        before.channels,
        before.format,
        before.subtype,
    )
    assert np.abs(soundfile.read(target)[0]).max() > 1e-4
    assert done.stdout.startswith(f"{stem} -> {target} (1.5 s of audio in ")
    assert sorted(path.name for path in stem.parent.iterdir()) == ["lead.Anna.wav", "lead.wav"]


@pytest.mark.parametrize(
    ("suffix", "kind", "rate", "channels", "frames"),
    [
        (".wav", ("WAV", "PCM_24"), 44_100, 1, 1),
        (".wav", ("WAV", "DOUBLE"), 8_000, 2, 4_001),
        (".wav", ("RF64", "PCM_16"), 192_000, 1, 50_001),
        (".aif", ("AIFF", "PCM_24"), 22_050, 8, 5_000),
        (".flac", ("FLAC", "PCM_16"), 48_000, 2, 20_011),
        (".w64", ("W64", "FLOAT"), 96_000, 1, 30_007),
    ],
)
def test_any_shape_and_format_comes_back_as_it_was(
    library: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    suffix: str,
    kind: tuple[str, str],
    rate: int,
    channels: int,
    frames: int,
) -> None:
    monkeypatch.setenv("RVCD_HOME", str(library))
    source, target = tmp_path / f"lead{suffix}", tmp_path / f"lead.Anna{suffix}"
    sung = seeded.sung_stem(1.0, rate)[:frames]
    container, subtype = kind
    soundfile.write(source, np.outer(sung, np.linspace(0.2, 1, channels)), rate, subtype, format=container)
    assert main(["convert", str(source), "--voice", "Anna"]) == 0
    after = soundfile.info(target)
    assert (after.frames, after.samplerate, after.channels, after.format, after.subtype) == (
        frames,
        rate,
        channels,
        container,
        subtype,
    )
    assert np.isfinite(soundfile.read(target)[0]).all()


def test_away_from_a_terminal_progress_is_one_line_for_each_stage(library: Path, stem: Path) -> None:
    done = run_rvcd(library, "convert", stem, "--voice", "Anna")
    assert done.stderr.splitlines() == [f"lead.wav: {stage}" for stage in ("analysis", "pitch", "voice", "output")]


def test_settings_reach_the_engine_and_a_seed_gives_the_same_bytes(
    library: Path, stem: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RVCD_HOME", str(library))
    options: dict[str, list[str]] = {
        "plain": [],
        "again": [],
        "seed": ["--seed=5"],
        "semitones": ["--semitones=5"],
        "index": ["--index-rate=0"],
        "loudness": ["--loudness=0"],
        "speaker": ["--speaker=2"],
        "yin": ["--f0=yin"],
        "stereo": ["--stereo=per-channel"],
        "half": ["--precision=float16"],
    }
    written = {}
    for name, extra in options.items():
        target = tmp_path / f"{name}.wav"
        assert main(["convert", str(stem), "--voice", "Anna", "-o", str(target), *extra]) == 0
        written[name] = target.read_bytes()
    assert written["plain"] == written["again"]
    assert len(set(written.values())) == len(options) - 1


def test_several_stems_into_a_folder_and_a_failing_one_stops_no_other(
    library: Path, stem: Path, tmp_path: Path
) -> None:
    empty, lossy = tmp_path / "empty.wav", tmp_path / "chorus.ogg"
    soundfile.write(empty, np.zeros((0, 1)), 44_100)
    soundfile.write(lossy, seeded.sung_stem(1.0, 32_000), 32_000)
    out = tmp_path / "new" / "out"
    done = run_rvcd(
        library, "convert", tmp_path / "gone.wav", empty, stem, lossy, "--voice", "Anna", "-o", out, "--json"
    )
    assert done.returncode == 1
    results = json_of(done)
    assert [r["error"] and r["error"]["code"] for r in results] == ["not_found", "empty_stem", None, None]
    assert [Path(r["output"]).name for r in results[2:]] == ["lead.Anna.wav", "chorus.Anna.wav"]
    assert sorted(path.name for path in out.iterdir()) == ["chorus.Anna.wav", "lead.Anna.wav"]
    assert soundfile.info(out / "chorus.Anna.wav").subtype == "PCM_24"
    lead = results[2]
    assert lead["voice"] == "Anna"
    assert lead["seconds_of_audio"] == pytest.approx(1.5)
    assert lead["realtime_factor"] == pytest.approx(lead["seconds_taken"] / lead["seconds_of_audio"])
    assert lead["gain_db"] <= 0
    assert f"rvcd: empty_stem: {empty}: " in done.stderr


def test_an_existing_output_is_kept_unless_told(library: Path, stem: Path) -> None:
    target = stem.with_name("lead.Anna.wav")
    target.write_bytes(b"somebody's take")
    refused = run_rvcd(library, "convert", stem, "--voice", "Anna")
    assert refused.returncode == 1
    assert refused.stderr.startswith("rvcd: already_exists: ")
    assert target.read_bytes() == b"somebody's take"
    assert run_rvcd(library, "convert", stem, "--voice", "Anna", "--overwrite").returncode == 0
    assert soundfile.info(target).frames == soundfile.info(stem).frames


def test_a_missing_output_folder_is_told_before_the_work(library: Path, stem: Path, tmp_path: Path) -> None:
    done = run_rvcd(library, "convert", stem, "--voice", "Anna", "-o", tmp_path / "gone" / "out.wav")
    assert done.returncode == 1
    assert done.stderr.startswith("rvcd: not_writable: ")
    assert done.stderr.count("\n") == 1


def test_a_speaker_that_the_voice_lacks_is_bad_usage(library: Path, stem: Path) -> None:
    done = run_rvcd(library, "convert", stem, "--voice", "Anna", "--speaker", 3)
    assert done.returncode == 2
    assert done.stderr.startswith("rvcd: bad_speaker: ")


def test_voices_and_models_can_be_named_by_path(sources: Path, stem: Path, tmp_path: Path) -> None:
    models = ["--content-encoder", sources / "contentvec", "--pitch", sources / "rmvpe.pt"]
    index = ["--index", sources / "added_Anna_v2.index"]
    home = tmp_path / "home"
    target = stem.with_name("lead.Anna.wav")
    written = []
    for extra in (index, []):
        done = run_rvcd(home, "convert", stem, "--voice", sources / "Anna.pth", *extra, *models, "--overwrite")
        assert done.returncode == 0, done.stderr
        written.append(target.read_bytes())
    assert written[0] != written[1]
    assert not (home / "voices").exists()


def test_a_voice_without_f0_and_yin_need_no_pitch_model(sources: Path, stem: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    imported = run_rvcd(home, "import", sources / "Anna.pth", sources / "Whisper.pth", sources / "contentvec")
    assert imported.returncode == 0, imported.stderr
    assert run_rvcd(home, "convert", stem, "--voice", "Whisper").returncode == 0
    assert run_rvcd(home, "convert", stem, "--voice", "Anna", "--f0", "yin").returncode == 0
    refused = run_rvcd(home, "convert", stem, "--voice", "Anna", "--overwrite")
    assert refused.returncode == 1
    assert refused.stderr.startswith("rvcd: missing_model: ")


def test_a_voice_that_cannot_be_loaded_fails_once(library: Path, stem: Path, tmp_path: Path) -> None:
    other = tmp_path / "chorus.wav"
    shutil.copy(stem, other)
    junk = tmp_path / "junk.pth"
    junk.write_bytes(b"junk" * 100)
    done = run_rvcd(library, "convert", stem, other, "--voice", junk, "--json")
    assert done.returncode == 1
    assert json_of(done)["error"]["code"] == "not_a_checkpoint"
    assert done.stderr.count("\n") == 1


def test_ctrl_c_ends_with_130_and_leaves_nothing(library: Path, tmp_path: Path) -> None:
    stem = tmp_path / "long.wav"
    soundfile.write(stem, np.tile(seeded.sung_stem(2.0, 16_000), 120), 16_000)
    with subprocess.Popen(
        command(["convert", stem, "--voice", "Anna"]), stderr=subprocess.PIPE, text=True, env=environment(library)
    ) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "long.wav: analysis\n"
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
    assert process.returncode == 130
    assert rest.splitlines()[-1] == "rvcd: interrupted"
    assert "Traceback" not in rest
    assert [path.name for path in tmp_path.iterdir()] == ["long.wav"]


def test_a_terminal_gets_a_bar_and_stdout_stays_clean(library: Path, stem: Path) -> None:
    terminal, stderr = pty.openpty()
    with (
        os.fdopen(terminal, "rb", buffering=0) as screen,
        subprocess.Popen(
            command(["convert", stem, "--voice", "Anna", "--json"]),
            stdout=subprocess.PIPE,
            stderr=stderr,
            env={**environment(library), "TERM": "xterm", "COLUMNS": "100"},
        ) as process,
    ):
        os.close(stderr)
        shown = b""
        try:
            while piece := screen.read(4096):
                shown += piece
        except OSError:  # how a terminal says that nobody writes to it any more
            pass
        assert process.stdout is not None
        [result] = json.loads(process.stdout.read())
    assert result["error"] is None
    assert b"lead.wav" in shown
    assert b"%" in shown
    assert b"output" in shown


def hub_environment(home: Path, hub: FakeHub) -> dict[str, str]:
    return {**environment(home), "HF_ENDPOINT": hub.url, "HF_HOME": str(home / "hub"), "NO_PROXY": "127.0.0.1"}


def test_fetch_that_finds_nothing_fails_in_one_line(tmp_path: Path) -> None:
    with running_hub() as hub:
        done = subprocess.run(
            command(["fetch", "--json"]),
            capture_output=True,
            text=True,
            env=hub_environment(tmp_path, hub),
            check=False,
        )
    assert done.returncode == 1
    assert json_of(done)["error"]["code"] == "download_failed"
    assert done.stderr.startswith("rvcd: download_failed: ")
    assert "Traceback" not in done.stderr


def test_fetch_installs_and_says_what_it_brings(sources: Path, tmp_path: Path) -> None:
    """The real base models are too large for a test: the command is given a tiny one to bring."""
    body = (sources / "rmvpe.pt").read_bytes()
    program = f"""
import functools, sys
from rvcd.cli import main
from rvcd.commands import fetching
from rvcd.fetch import Asset, AssetFile
file = AssetFile("rmvpe.pt", {len(body)}, ({hashlib.sha256(body).hexdigest()!r},))
asset = Asset("pitch", "rmvpe", "someone/models", (file,), "none")
fetching.fetch_base_models = functools.partial(fetching.fetch_base_models, roles=("pitch",), assets=[asset])
sys.exit(main(["fetch"]))
"""
    with running_hub() as hub:
        hub.put("someone/models", "rmvpe.pt", body)
        done = subprocess.run(
            [sys.executable, "-c", program],
            capture_output=True,
            text=True,
            env=hub_environment(tmp_path, hub),
            check=False,
        )
    [model] = (tmp_path / "models").iterdir()
    assert (done.returncode, done.stdout) == (0, f"installed {model}\n")
    assert done.stderr == f"fetch: pitch ({len(body) / 1e6:.0f} MB)\n"


def test_a_stem_that_was_cut_short_is_refused(library: Path, tmp_path: Path) -> None:
    """libsndfile would read it as a shorter one."""
    path = tmp_path / "cut.wav"
    soundfile.write(path, np.zeros(5000), 44100, subtype="PCM_24")
    path.write_bytes(path.read_bytes()[:-3000])
    done = run_rvcd(library, "convert", path, "--voice", "Anna")
    assert done.returncode == 1
    assert "unreadable_stem" in done.stderr
    assert [file.name for file in tmp_path.iterdir()] == ["cut.wav"]
