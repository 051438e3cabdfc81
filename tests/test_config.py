import dataclasses
import json
import os
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from rvcd import paths
from rvcd.cli import main
from rvcd.config import BackupPolicy, Config, Folder, OscConfig, Preset, load, read, read_overrides
from rvcd.config_text import effective_text, entries, sample_config
from rvcd.effective import effective_settings, file_name_tags
from rvcd.errors import Code, RvcdError
from rvcd.jobs import JobRequest
from rvcd.settings import Settings
from rvcd.toml_text import lines_of_keys, toml_value


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RVCD_HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "some.toml"


def problems_of(file: Path, text: str | bytes) -> list[tuple[int | None, str, str]]:
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return [(problem.line, problem.key, problem.text) for problem in read(file)[1]]


def error_of(act: Any) -> RvcdError:
    with pytest.raises(RvcdError) as caught:
        act()
    return caught.value


# What a file may say.


def test_without_a_file_the_defaults_hold(home: Path) -> None:
    assert load() == Config()
    assert Config().folders == (Folder(path=home / "stems"),)


def test_a_full_file_is_read(file: Path) -> None:
    file.write_text("""
[osc]
port = 9001
address = "::1"
token_file = "~/token"
roots = ["/audio", "~/Music"]

[backups]
max_gb = 20

[defaults]
voice = "Anna"
semitones = -3
fill_unvoiced = true

[[folder]]
path = "/audio/in"
voice = "Bob"
mode = "out"
out = "/audio/out"
protect = 0.2

[[folder]]
path = "/audio/other"
settle_seconds = 0.5
recursive = false
""")
    config = load(file)
    user = Path.home()
    assert config == Config(
        osc=OscConfig(
            port=9001,
            address="::1",
            token_file=user / "token",
            roots=(Path("/audio"), user / "Music"),
        ),
        backups=BackupPolicy(max_gb=20),
        defaults=Preset(voice="Anna", settings={"semitones": -3, "fill_unvoiced": True}),
        folders=(
            Folder(path=Path("/audio/in"), voice="Bob", mode="out", out=Path("/audio/out"), settings={"protect": 0.2}),
            Folder(path=Path("/audio/other"), settle_seconds=0.5, recursive=False),
        ),
    )
    assert config.path == file
    assert set(config.allowed_roots) == {*config.osc.roots, *map(Path, ("/audio/in", "/audio/out", "/audio/other"))}


def test_a_user_may_want_no_hot_folder(file: Path) -> None:
    file.write_text("folder = []")
    assert load(file).folders == ()


@pytest.mark.parametrize("address", ["127.0.0.1", "127.8.8.8", "::1"])
def test_loopback_needs_no_permission(file: Path, address: str) -> None:
    assert problems_of(file, f'[osc]\naddress = "{address}"') == []


@pytest.mark.parametrize("text", ["\ufeff[osc]\r\nport = 1\r\n", "[osc]\nport = 1", "osc.port = 1", "osc = {port = 1}"])
def test_a_file_may_be_written_in_any_way_that_toml_allows(file: Path, text: str) -> None:
    file.write_bytes(text.encode())
    assert load(file).osc.port == 1


# What is wrong with it.


@pytest.mark.parametrize(
    ("text", "line", "key", "says"),
    [
        ("[osc]\n\nprot = 1", 3, "osc.prot", "did you mean port?"),
        ("[ocs]\nport = 1", 1, "ocs", "did you mean osc?"),
        ("port = 1", 1, "port", "belongs in [osc]"),
        ("[[folder]]\npath = '/a'\n[[folder]]\npath = '/b'\nvioce = 'Anna'", 5, "folder.vioce", "did you mean voice?"),
        ("[defaults]\nprotekt = 0.1", 2, "defaults.protekt", "did you mean protect?"),
        ("[defaults]\nwindows = [1, 2, 3, 4]", 2, "defaults.windows", "unknown key"),
        ("[osc]\nport = 65536", 2, "osc.port", "from 0 to 65535, not 65536"),
        ("[osc]\nport = true", 2, "osc.port", "whole number"),
        ("[osc]\naddress = 'localhost'", 2, "osc.address", "in digits such as 127.0.0.1, not 'localhost'"),
        ("[osc]\naddress = '192.168.0.2'", 2, "osc.address", "can be reached by other machines"),
        ("[osc]\nroots = [\n'/a',\n'b']", 2, "osc.roots", "starts with / or ~/, not 'b'"),
        ("[osc]\nroots = '/a'", 2, "osc.roots", "list of paths"),
        ("[osc]\ntoken_file = '/a\u0000b'".replace("'", '"').replace("\0", "\\u0000"), 2, "osc.token_file", "path"),
        ("[engine]\nprecision = 'float8'", 2, "engine.precision", "float32, float16"),
        ("[engine]\nidle_release_seconds = nan", 2, "engine.idle_release_seconds", "number"),
        ("[backups]\nkeep_days = 0", 2, "backups.keep_days", "from 1 to"),
        ("[defaults]\nvoice = ''", 2, "defaults.voice", "name"),
        ("[defaults]\nsemitones = 99", 2, "defaults.semitones", "must lie between -48.0 and 48.0, not 99"),
        ("[defaults]\nsemitones = '3'", 2, "defaults.semitones", "must be a number, not '3'"),
        ("[defaults]\nfill_unvoiced = 1", 2, "defaults.fill_unvoiced", "true or false, not 1"),
        (f"[defaults]\nseed = 1{'0' * 400}", 2, "defaults.seed", "too large"),
        ("[[folder]]\nvoice = 'Anna'", 1, "folder", "needs a path"),
        ("[[folder]]\npath = '/a'\nmode = 'out'", 3, "folder.mode", "need each other"),
        ("[[folder]]\npath = '/a'\nout = '/b'", 1, "folder.mode", "need each other"),
        ("[[folder]]\npath = '/a'\nmode = 'in'", 3, "folder.mode", "replace, sibling, out"),
        ("[[folder]]\npath = '/a'\n[[folder]]\npath = '/a'", 4, "folder.path", "already"),
        ("[folder]\npath = '/a'", 1, "folder", "two brackets"),
        ("osc = 1", 1, "osc", "must be a table"),
        ("folder = [1]", 1, "folder", "must be a table"),
        ("[osc]\nport = \n", 2, "", "Invalid value"),
        ("[osc]\nport = '", 2, "", ""),
        ("[osc]\nport = 1\nport = 2", 3, "", "overwrite"),
        (b"[osc]\n# \xff\n", 2, "", "UTF-8"),
        ("x = " + "1" * 5_000, 1, "", "digits"),
        ("x = " + "[" * 100_000, 1, "", "nested too deeply"),
        (b"#" * (1 << 20) + b"##", 1, "", "too large"),
    ],
)
def test_a_problem_is_told_with_its_line_its_key_and_what_would_be_right(
    file: Path, text: str | bytes, line: int, key: str, says: str
) -> None:
    (found,) = problems_of(file, text)
    assert (found[0] or 1, found[1]) == (line, key)
    assert says in found[2]


def test_all_problems_are_told_at_once_in_the_order_of_the_file(file: Path) -> None:
    file.write_text("[queue]\nbound = 0\n[osc]\nprot = 1\n[[folder]]\npath = 'x'\nsemitones = 'high'\n")
    error = error_of(lambda: load(file))
    assert error.code is Code.BAD_CONFIGURATION
    assert re.findall(rf"{re.escape(str(file))}:(\d+): ([a-z.]+): ", error.sentence) == [
        ("2", "queue.bound"),
        ("4", "osc.prot"),
        ("6", "folder.path"),
        ("7", "folder.semitones"),
    ]


def test_what_is_right_in_a_bad_file_can_still_be_used(file: Path) -> None:
    file.write_text("[osc]\nport = 9001\ntcp = 'maybe'\n")
    config, problems = read(file)
    assert len(problems) == 1
    assert (config.osc.port, config.osc.tcp) == (9001, False)


def test_a_file_that_was_named_must_be_there(file: Path) -> None:
    error = error_of(lambda: load(file))
    assert (error.code, str(file) in error.sentence) == (Code.NOT_FOUND, True)


def test_a_folder_is_no_configuration(tmp_path: Path) -> None:
    assert error_of(lambda: load(tmp_path)).code is Code.BAD_CONFIGURATION


# Lines of keys.


def test_keys_are_found_among_everything_that_looks_like_one() -> None:
    text = '''top = 1   # no = 2
"quoted key" = """
[not.a.table]
key = 'no'
"""
list = [   # [neither]
    "a = 1", [1, 2],
]
raw = \'\'\'
\\\'\'\'
[ table . "sub" ]
a.b = {x = 1, y = "]"}
[[many]]
c = 1
[[many]]

  c = "\\""
[many.inner]
d = 1'''
    assert tomllib.loads(text)["many"][1] == {"c": '"', "inner": {"d": 1}}
    assert lines_of_keys(text) == {
        ("top",): 1,
        ("quoted key",): 2,
        ("list",): 6,
        ("raw",): 9,
        ("table", "sub"): 11,
        ("table", "sub", "a", "b"): 12,
        ("many", 0): 13,
        ("many", 0, "c"): 14,
        ("many", 1): 15,
        ("many", 1, "c"): 17,
        ("many", 1, "inner"): 18,
        ("many", 1, "inner", "d"): 19,
    }


@pytest.mark.parametrize("value", ['a "b" \\ \n\t\x7f ä 🎤', True, 3, -0.5, 1e30, [1, 2], ["a", "b"], []])
def test_a_value_that_is_written_reads_the_same(value: Any) -> None:
    assert tomllib.loads(f"x = {toml_value(value)}")["x"] == value


# Which voice and settings a stem gets.


@pytest.fixture
def layers(tmp_path: Path) -> dict[str, Any]:
    """Every layer names a voice, and each but the weakest changes one thing more than the one below."""
    folder = tmp_path / "hot"
    (folder / "Cleo" / "deep").mkdir(parents=True)
    (folder / ".rvcd.toml").write_text("voice = 'Outer'\nprotect = 0.3\nindex_rate = 0.3")
    (folder / "Cleo" / "deep" / ".rvcd.toml").write_text("voice = 'Inner'\nprotect = 0.4")
    (tmp_path / ".rvcd.toml").write_text("voice = 'Outside'\nseed = 1")
    return {
        "config": Config(defaults=Preset(voice="Default", settings={"loudness": 0.1, "index_rate": 0.1, "seed": 7})),
        "folder": Folder(
            path=folder, voice="Folder", settings={"loudness": 0.2, "index_rate": 0.2}, file_name_tags=True
        ),
        "subfolder_voice": "Cleo",
        "request": JobRequest(
            path=folder / "Cleo" / "deep" / "lead [voice=Tag, protect=0.5, +2].wav",
            voice="Request",
            settings={"semitones": 3.0},
        ),
    }


def without(layers: dict[str, Any], *names: str) -> dict[str, Any]:
    changed = dict(layers)
    if "request" in names:
        changed["request"] = JobRequest(path=layers["request"].path)
    if "tags" in names:
        changed["folder"] = dataclasses.replace(layers["folder"], file_name_tags=False)
    if "overrides" in names:
        for file in (layers["folder"].path / ".rvcd.toml", layers["request"].path.parent / ".rvcd.toml"):
            file.unlink()
    if "subfolder" in names:
        changed["subfolder_voice"] = None
    if "folder" in names:
        changed["folder"] = dataclasses.replace(changed["folder"], voice=None, settings={})
    return changed


@pytest.mark.parametrize(
    ("absent", "voice", "settings"),
    [
        ([], "Request", {"semitones": 3.0, "protect": 0.5, "index_rate": 0.3, "loudness": 0.2}),
        (["request"], "Tag", {"semitones": 2.0, "protect": 0.5, "index_rate": 0.3, "loudness": 0.2}),
        (["request", "tags"], "Inner", {"protect": 0.4, "index_rate": 0.3, "loudness": 0.2}),
        (["request", "tags", "overrides"], "Cleo", {"index_rate": 0.2, "loudness": 0.2}),
        (["request", "tags", "overrides", "subfolder"], "Folder", {"index_rate": 0.2, "loudness": 0.2}),
        (["request", "tags", "overrides", "subfolder", "folder"], "Default", {"index_rate": 0.1, "loudness": 0.1}),
    ],
)
def test_the_stronger_layer_decides(
    layers: dict[str, Any], absent: list[str], voice: str, settings: dict[str, Any]
) -> None:
    assert effective_settings(**without(layers, *absent)) == (voice, Settings(**settings, seed=7))


def test_outside_of_hot_folders_the_file_beside_the_stem_counts(tmp_path: Path, layers: dict[str, Any]) -> None:
    for place, voice in ((tmp_path, "Outside"), (tmp_path / "hot" / "Cleo", "Default")):
        request = JobRequest(path=place / "lead [voice=Tag].wav")
        assert effective_settings(layers["config"], None, None, request)[0] == voice


def test_a_stem_without_a_voice_is_refused_by_name() -> None:
    error = error_of(lambda: effective_settings(Config(), None, None, JobRequest(path=Path("/music/lead.wav"))))
    assert (error.code, "/music/lead.wav" in error.sentence) == (Code.UNKNOWN_VOICE, True)


@pytest.mark.parametrize(
    ("settings", "says"),
    [({"protekt": 1}, "did you mean protect?"), ({"protect": 2.0}, "not 2.0"), ({"windows": None}, "")],
)
def test_a_request_with_a_bad_setting_is_refused(settings: dict[str, Any], says: str) -> None:
    request = JobRequest(path=Path("/music/lead.wav"), voice="Anna", settings=settings)
    error = error_of(lambda: effective_settings(Config(), None, None, request))
    assert (error.code, says in error.sentence) == (Code.BAD_SETTING, True)


@pytest.mark.parametrize(
    "text", ["port = 1", "[osc]\nport = 1", "[[folder]]\npath = '/'", "path = '/'", "mode = 'out'"]
)
def test_a_file_among_stems_may_change_voice_and_settings_only(tmp_path: Path, text: str) -> None:
    file = tmp_path / ".rvcd.toml"
    file.write_text(text)
    error = error_of(
        lambda: effective_settings(Config(), None, None, JobRequest(path=tmp_path / "lead.wav", voice="A"))
    )
    assert error.code is Code.BAD_CONFIGURATION
    assert f"{file}:1: " in error.sentence
    file.write_text("voice = 'Anna'\nsemitones = 2")
    assert read_overrides(file) == Preset("Anna", {"semitones": 2})


@pytest.mark.parametrize(
    ("name", "voice", "settings"),
    [
        ("lead [voice=Anna, +3].wav", "Anna", {"semitones": 3.0}),
        ("lead [-0.5].wav", None, {"semitones": -0.5}),
        ("lead[ speaker_id = 2,fill_unvoiced=TRUE , f0_method=yin] .wav", None, None),
        ("[+1] lead [voice=Jörg Ö].wav", "Jörg Ö", {}),
        ("lead [take 2].wav", None, {}),
        ("lead [3].wav", None, {}),
        ("lead [+3] final.wav", None, {}),
        ("lead [+3, final].wav", None, {}),
        ("lead [].wav", None, {}),
        ("lead.wav", None, {}),
        ("[+3].wav", None, {"semitones": 3.0}),
    ],
)
def test_tags_in_a_name(name: str, voice: str | None, settings: dict[str, Any] | None) -> None:
    if settings is None:
        settings = {"speaker_id": 2, "fill_unvoiced": True, "f0_method": "yin"}
    assert file_name_tags(Path("/a") / name) == Preset(voice, settings)


@pytest.mark.parametrize(
    ("tags", "says"),
    [
        ("+99", "not 99"),
        ("voise=Anna", "did you mean voice?"),
        ("protect=high", "'high'"),
        ("speaker_id=1.5", "1.5"),
        ("fill_unvoiced=maybe", "'maybe'"),
    ],
)
def test_a_wrong_tag_is_refused_with_the_name_of_the_file(tags: str, says: str) -> None:
    error = error_of(lambda: file_name_tags(Path(f"/a/lead [{tags}].wav")))
    assert error.code is Code.BAD_SETTING
    assert says in error.sentence
    assert f"lead [{tags}].wav" in error.sentence


# Text.


def test_the_example_is_accepted_and_changes_nothing(file: Path) -> None:
    file.write_text(sample_config())
    assert load(file) == Config()


def test_every_line_of_the_example_that_may_be_set_is_accepted(file: Path) -> None:
    """Also where no default could tell a wrong one; each is tried by itself, as some exclude each other."""
    lines = sample_config().splitlines()
    offered = [number for number, line in enumerate(lines) if re.match(r"# \w+ = ", line)]
    assert len(offered) > 20
    for number in offered:
        tried = [*lines[:number], lines[number].removeprefix("# "), *lines[number + 1 :]]
        if tried[number].startswith("out ="):
            tried = ['mode = "out"' if line.startswith("mode =") else line for line in tried]
        file.write_text("\n".join(tried))
        load(file)


def test_the_example_names_every_key() -> None:
    for entry in entries(Config()):
        assert re.search(rf"^(# )?{entry.at[-1]} = ", sample_config(), re.MULTILINE)


def test_what_is_shown_can_be_read_back_and_says_where_it_comes_from(file: Path, tmp_path: Path) -> None:
    file.write_text("[osc]\n\nport = 9001\n[[folder]]\npath = '/a'\nsemitones = 2\n[[folder]]\npath = '/b'\n")
    shown = effective_text(load(file))
    assert re.search(r"^port = 9001 +# line 3$", shown, re.MULTILINE)
    assert re.search(r"^semitones = 2 +# line 6$", shown, re.MULTILINE)
    assert re.search(r"^tcp = false +# default$", shown, re.MULTILINE)
    again = tmp_path / "again.toml"
    again.write_text(shown)
    assert load(again) == load(file)


# The command.


def test_config_check_prints_every_problem_and_fails(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text("[osc]\nprot = 1\ntcp = 2\n")
    assert main(["config", "check", "--config", str(file)]) == 1
    assert capsys.readouterr().out.splitlines() == [
        f"{file}:2: osc.prot: unknown key; did you mean port?",
        f"{file}:3: osc.tcp: must be true or false, not 2",
    ]
    assert main(["config", "check", "--json", "--config", str(file)]) == 1
    assert [problem["line"] for problem in json.loads(capsys.readouterr().out)["problems"]] == [2, 3]
    file.write_text("[osc]\nport = 1\n")
    assert main(["config", "check", "--config", str(file)]) == 0


def test_config_check_is_content_when_there_is_no_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "check"]) == 0
    assert str(paths.config_file()) in capsys.readouterr().out


def test_config_show_and_path(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (home / "rvcd.toml").write_text("[osc]\nport = 9001\n")
    assert main(["config", "path"]) == 0
    assert capsys.readouterr().out == f"{home / 'rvcd.toml'}\n"
    assert main(["config", "show"]) == 0
    assert tomllib.loads(capsys.readouterr().out)["osc"]["port"] == 9001
    assert main(["config", "show", "--json"]) == 0
    values = {entry["key"]: entry for entry in json.loads(capsys.readouterr().out)["values"]}
    assert values["osc.port"] == {"key": "osc.port", "value": 9001, "line": 2}
    assert main(["config", "show", "--example"]) == 0
    assert capsys.readouterr().out.rstrip() == sample_config().rstrip()


def test_config_show_refuses_what_it_cannot_believe(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text("[osc]\nport = -1\n")
    assert main(["config", "show", "--config", str(file)]) == 1
    assert f"bad_configuration: 1 problem in the configuration: {file}:2: osc.port" in capsys.readouterr().err


def test_the_users_own_file_lies_where_the_platform_keeps_configurations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RVCD_HOME")
    assert paths.config_file().name == "rvcd.toml"
    assert os.fspath(paths.config_file()).startswith(str(Path.home()))
    assert paths.hot_folder() == Path.home() / "Music" / "rvcd"
