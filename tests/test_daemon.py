"""The daemon as a whole: real processes, real packets, real files and a real engine with tiny models."""

import json
import os
import re
import time
import unicodedata
from pathlib import Path

import pytest
import wavinfo

from rvcd import backups
from rvcd.errors import Code, RvcdError
from tests.support.audio_files import broadcast_wave, pcm24, wave_format
from tests.support.daemon import Daemon, bounce, digest, endings, refused, wait_for
from tests.support.osc_peer import Peer


def takes(daemon: Daemon, stem: Path) -> list[str]:
    return [each.sha256 for each in backups.list_backups(daemon.stems) if each.original == stem]


# Models and voices.


def test_without_models_it_answers_and_says_what_is_missing(tmp_path: Path, imported_models: Path) -> None:
    daemon = Daemon(tmp_path / "home")
    begun = time.monotonic()
    daemon.start()
    status = daemon.status()
    assert time.monotonic() - begun < 5
    assert status["state"] == "degraded"
    assert "content encoder" in status["detail"]
    assert "rvcd fetch" in status["detail"]
    try:
        bounce(daemon.stems / "early.wav")
        assert daemon.ended(1)[0][1:] == ("failed", str(daemon.stems / "early.wav"), "missing_model")
        daemon.install(imported_models)
        bounce(daemon.stems / "late.wav")
        assert daemon.ended(2)[0][1] == "committed"
        assert daemon.status()["state"] == "idle"
    finally:
        daemon.stop()


def test_a_load_finds_models_that_were_installed_later(tmp_path: Path, imported_models: Path) -> None:
    daemon = Daemon(tmp_path / "home").start()
    try:
        daemon.install(imported_models)
        with daemon.client() as client:
            client.command("/rvcd/model/load", "bert", wait_seconds=20)
            client.command("/rvcd/model/load", "bert", wait_seconds=20)  # it is warm already
        assert daemon.status()["warm"] == 2
    finally:
        daemon.stop()


def test_voices_are_loaded_and_leave(daemon: Daemon) -> None:
    """Under a budget for one voice the one used longest ago leaves; unload and idle release empty the memory."""
    daemon.configure("[engine]\nwarm_megabytes = 0\nidle_release_seconds = 2")
    daemon.start().until("idle")

    def states() -> dict[str, str]:
        with daemon.client() as client:
            return {row.args[1]: row.args[2] for row in client.collect("/rvcd/models")}

    with daemon.client() as client:
        assert states() == {"anna": "warm", "bert": "cold"}
        client.command("/rvcd/model/load", "bert", wait_seconds=20)
        assert states() == {"anna": "cold", "bert": "warm"}
        client.command("/rvcd/model/unload", "bert", wait_seconds=20)
        wait_for(lambda: states() == {"anna": "cold", "bert": "cold"})
    wait_for(lambda: daemon.engine_pid is None)
    bounce(daemon.stems / "after.wav")
    assert daemon.ended(1)[0][1] == "committed"
    assert states()["anna"] == "warm"
    with daemon.client() as client, pytest.raises(RvcdError) as refusal:
        client.command("/rvcd/model/load", "nobody", wait_seconds=20)
    assert refusal.value.code is Code.UNKNOWN_VOICE


def test_a_damaged_voice_fails_alone(daemon: Daemon) -> None:
    damaged = next((daemon.home / "voices").glob("bert*"))
    content = damaged.read_bytes()
    damaged.write_bytes(content[: len(content) // 2])
    daemon.start().until("idle")
    with daemon.client() as client, pytest.raises(RvcdError):
        client.command("/rvcd/model/load", "bert", wait_seconds=20)
    bounce(daemon.stems / "a.wav")
    assert daemon.ended(1)[0][1] == "committed"


def test_a_damaged_encoder_degrades_without_a_storm_of_starts(daemon: Daemon) -> None:
    damaged = next((daemon.home / "models").glob("content*"))
    content = damaged.read_bytes()
    length = int.from_bytes(content[:8], "little")
    name = re.findall(rb'"([a-z_.0-9]+\.weight)"', content[8 : 8 + length])[0]
    damaged.write_bytes(content[:8] + content[8:].replace(name, name[:-1] + b"X", 1))
    daemon.start().until("degraded")
    for name in ("a", "b"):
        bounce(daemon.stems / f"{name}.wav")
    assert [row[1] for row in daemon.ended(2)] == ["failed", "failed"]
    assert daemon.log().count("there is no engine") == 1
    damaged.write_bytes(content)
    bounce(daemon.stems / "c.wav")
    assert daemon.ended(3)[0][1] == "committed"


# Hot folders.


def test_a_bounce_is_converted_once_and_keeps_its_metadata(running: Daemon) -> None:
    stem = running.stems / "verse" / "take.wav"
    stem.parent.mkdir()
    original = broadcast_wave(pcm24(20_000), fmt=wave_format())
    before = len(running.jobs())
    draft = running.home / "draft"
    draft.write_bytes(original)
    draft.replace(stem)
    job = running.ended(before + 1)[0]
    assert job[1:] == ("committed", str(stem), "")
    converted = stem.read_bytes()
    assert converted != original
    assert len(converted) == len(original)
    info = wavinfo.WavInfoReader(str(stem))
    assert info.bext.description == "lead"
    assert info.ixml.take == "3"
    assert info.data.frame_count == 20_000
    assert takes(running, stem) == [digest(next((running.stems / ".rvcd").glob("backup/*/*take.wav")))]

    with running.client() as client:
        client.command("/rvcd/restore", job[0], wait_seconds=20)
    assert stem.read_bytes() == original
    with running.client() as client:
        client.command("/rvcd/watch", "rescan")
    bounce(running.stems / "verse" / "next.wav")
    assert len(running.ended(before + 2)) == before + 2, "neither the conversion nor the restored take is a new bounce"
    assert stem.read_bytes() == original


def test_folders_name_voices_and_settings(running: Daemon) -> None:
    results = {}
    for folder in ("plain", "Bert", "tuned"):
        (running.stems / folder).mkdir()
    (running.stems / "tuned" / ".rvcd.toml").write_text("semitones = 5\n")
    before = len(running.jobs())
    for folder in ("plain", "Bert", "tuned"):
        bounce(running.stems / folder / "same.wav")
    running.ended(before + 3)
    for folder in ("plain", "Bert", "tuned"):
        results[folder] = digest(running.stems / folder / "same.wav")
    assert len(set(results.values())) == 3
    voices = {each.original.parent.name: each.voice for each in backups.list_backups(running.stems)}
    assert (voices["plain"], voices["Bert"], voices["tuned"]) == ("anna", "bert", "anna")


def test_what_is_there_at_the_start_is_only_offered(daemon: Daemon) -> None:
    present = bounce(daemon.stems / "present.wav")
    daemon.start().until("idle")
    bounce(daemon.stems / "new.wav")
    assert [Path(row[2]).name for row in daemon.ended(1)] == ["new.wav"]
    with daemon.client() as client:
        (folder,) = client.collect("/rvcd/watch", "list")
    assert folder.args[2:4] == ("watching", 1)
    assert (daemon.stems / "present.wav").read_bytes() == present
    assert daemon.run(daemon.stems / "present.wav")[1] == "committed"


def test_forty_stems_at_once_are_each_converted_once(running: Daemon) -> None:
    before = len(running.jobs())
    originals = {}
    with running.client() as client:
        client.subscribe("jobs")
        for number in range(40):
            path = running.stems / "many" / f"{number}.wav"
            bounce(path, 0.12, seed=number)
            originals[path] = digest(path)
        ends = endings(client, 40)
    assert len({job for _, job in ends}) == len(ends) == 40
    assert {end for end, _ in ends} == {"done"}
    jobs = running.ended(before + 40)
    assert len(jobs) == before + 40
    assert {row[1] for row in jobs[:40]} == {"committed"}
    for path, original in originals.items():
        assert takes(running, path) == [original]
        assert digest(path) != original


def test_the_newest_of_two_bounces_wins(daemon: Daemon) -> None:
    daemon.start("gated").until("idle")
    stem = daemon.stems / "lead.wav"
    with daemon.client() as client:
        client.subscribe("jobs")
        bounce(stem, seed=1)
        wait_for((daemon.home / "converting").exists)
        newest = bounce(stem, 0.4, seed=2)
        (daemon.home / "go").touch()
        ends = endings(client, 2)
    assert sorted(end for end, _ in ends) == ["cancelled", "done"], ends
    assert len({job for _, job in ends}) == 2
    assert len(stem.read_bytes()) == len(newest)
    last = backups.list_backups(daemon.stems)[0]
    assert (last.size, last.result) == (len(newest), digest(stem))


@pytest.mark.parametrize(("mode", "result"), [("sibling", "lead.anna.wav"), ("out", "out/lead.anna.wav")])
def test_results_beside_a_bounce_are_no_bounces(daemon: Daemon, mode: str, result: str) -> None:
    out = f'out = "{daemon.stems}/out"' if mode == "out" else ""
    daemon.configure(folder=f'mode = "{mode}"\n{out}')
    daemon.start().until("idle")
    original = bounce(daemon.stems / "lead.wav")
    daemon.ended(1)
    bounce(daemon.stems / "next.wav")
    daemon.ended(2)
    bounce(daemon.stems / "last.wav")
    assert len(daemon.ended(3)) == 3
    assert (daemon.stems / "lead.wav").read_bytes() == original
    assert len((daemon.stems / result).read_bytes()) == len(original)


NAMES = (
    "it's \"quoted\" 'twice'.wav",
    unicodedata.normalize("NFD", "Émilie übt.wav"),
    unicodedata.normalize("NFC", "Zoë.wav"),
    "🎤 lead.wav",
    "line\nbreak.wav",
    "x" * 220 + ".wav",
    "-rf.wav",
    "%s %d {0}.wav",
)


def test_odd_names(running: Daemon) -> None:
    before = len(running.jobs())
    originals = {name: bounce(running.stems / name, seed=number) for number, name in enumerate(NAMES)}
    jobs = running.ended(before + len(NAMES))[: len(NAMES)]
    assert {row[1] for row in jobs} == {"committed"}, jobs
    for row in jobs:
        with running.client() as client:
            client.command("/rvcd/restore", row[0], wait_seconds=20)
    for name, original in originals.items():
        assert (running.stems / name).read_bytes() == original
    assert running.run(running.stems / NAMES[3])[1] == "committed"


def test_a_name_that_is_no_text(running: Daemon) -> None:
    stem = running.stems / os.fsdecode(b"caf\xe9.wav")
    before = len(running.jobs())
    bounce(stem)
    running.ended(before + 1)
    assert len(takes(running, stem)) == 1


# OSC and the spool.


def test_convert_over_osc(running: Daemon) -> None:
    elsewhere = running.home / "elsewhere"
    stem = elsewhere / "lead.wav"
    original = bounce(stem)
    assert running.run(stem, "mode", "sibling", "model", "bert")[1] == "committed"
    assert (elsewhere / "lead.bert.wav").stat().st_size == len(original)
    assert running.run(stem, "model", "anna", "out", str(elsewhere / "sub" / "named.wav"))[1] == "committed"
    assert (elsewhere / "sub" / "named.wav").exists()
    assert running.run(stem, "model", "anna", "dry_run", 1)[1] == "committed"
    assert stem.read_bytes() == original
    job = running.run(stem, "model", "anna", "pitch", 3.0)
    assert job[1] == "committed"
    assert stem.read_bytes() != original
    with running.client() as client:
        client.command("/rvcd/restore", str(stem), wait_seconds=20)
    assert stem.read_bytes() == original
    assert not [path for path in elsewhere.rglob(".*") if path.name != ".rvcd"]


def test_bad_requests_fail_at_once(running: Daemon, tmp_path: Path) -> None:
    stem = running.home / "elsewhere" / "bad.wav"
    bounce(stem)
    outside = tmp_path / "outside.wav"
    bounce(outside)
    link = stem.with_name("link.wav")
    link.symlink_to(outside)
    short = stem.with_name("short.wav")
    short.write_bytes(stem.read_bytes()[:-500])
    for expected, path, pairs in (
        (Code.UNKNOWN_VOICE, stem, ("model", "nobody")),
        (Code.BAD_SETTING, stem, ("index_rate", 3.0)),
        (Code.NOT_ALLOWED, outside, ()),
        (Code.NOT_ALLOWED, link, ()),
        (Code.NOT_ALLOWED, stem, ("out", str(tmp_path / "o.wav"))),
        (Code.NOT_FOUND, stem.with_name("none.wav"), ()),
        (Code.FILE_UNSTABLE, short, ()),
        (Code.BAD_REQUEST, stem, ("out", str(stem))),
        (Code.BAD_REQUEST, stem, ("colour", "red")),
    ):
        voice = () if expected is Code.UNKNOWN_VOICE else ("model", "anna")
        assert refused(running, "/rvcd/convert", str(path), *voice, *pairs) == expected, path
    assert refused(running, "/rvcd/cancel", 999_999) == Code.NOT_FOUND


def test_cancel_queued_and_running(daemon: Daemon) -> None:
    daemon.start("gated").until("idle")
    stems = [daemon.home / "elsewhere" / f"{number}.wav" for number in range(3)]
    originals = [bounce(stem) for stem in stems]
    with daemon.client() as client:
        first, second, third = (
            int(client.command("/rvcd/convert", str(stem), "model", "anna").args[1]) for stem in stems
        )
        wait_for((daemon.home / "converting").exists)
        client.command("/rvcd/cancel", second)
        client.command("/rvcd/cancel", first)
        assert sorted(endings(client, 2)) == [("cancelled", first), ("cancelled", second)]
        (daemon.home / "go").touch()
        assert endings(client, 1) == [("done", third)]
    assert [stem.read_bytes() == original for stem, original in zip(stems, originals, strict=True)] == [
        *(True, True, False)
    ]
    assert refused(daemon, "/rvcd/cancel", first) == Code.BAD_REQUEST


def test_pause_hold_and_release(running: Daemon) -> None:
    stem, held = running.stems / "paused.wav", running.stems / "held.wav"
    before = len(running.jobs())
    with running.client() as client:
        client.subscribe("watch")
        client.command("/rvcd/watch", "pause")
        assert running.status()["state"] == "paused"
        event = client.next_event(20)
        assert event is not None
        assert event.args[1:] == (str(running.stems), "paused")
        original = bounce(stem)
        job = running.convert(stem)
        client.command("/rvcd/hold", str(held), 60.0)
        bounce(held)
        assert refused(running, "/rvcd/convert", str(held)) == Code.FILE_IN_USE
        client.command("/rvcd/watch", "resume")
        assert running.end_of(job)[1] == "committed"
        assert stem.read_bytes() != original
        bounce(running.stems / "after held.wav")
        assert len(running.ended(before + 2)) == before + 2, "the held bounce waits"
        client.command("/rvcd/release", str(held))
    assert running.ended(before + 3)[0][2] == str(held)


def test_the_spool(running: Daemon) -> None:
    spool = running.home / "spool"
    stem = running.home / "elsewhere" / "spooled.wav"
    bounce(stem)

    def drop(contents: dict[str, str]) -> dict[str, dict[str, str]]:
        answers = {}
        for name, content in contents.items():
            draft = spool / f".{name}"
            draft.write_text(content)
            draft.replace(spool / f"{name}.json")
        for name in contents:
            answer = spool / f"{name}.done.json"
            wait_for(lambda: answer.exists() and not (spool / f"{name}.json").exists())  # noqa: B023
            answers[name] = json.loads(answer.read_text())
        return answers

    wrong = {
        "relative": {"path": "a.wav"},
        "nul": {"path": "/a\0b"},
        "number": {"path": 5},
        "settings": {"path": str(stem), "settings": [1]},
        "priority": {"path": str(stem), "priority": "high"},
        "huge": {"path": str(stem), "priority": 1 << 70},
        "unknown": {"path": str(stem), "colour": "red"},
    }
    dropped = {name: json.dumps(content) for name, content in wrong.items()}
    for name, answer in drop({**dropped, "broken": "{nothing", "deep": "[" * 100_000}).items():
        assert (answer["state"], answer["code"]) == ("failed", "bad_request"), name
    answers = drop(
        {
            "outside": json.dumps({"path": "/etc/hosts"}),
            "good": json.dumps({"path": str(stem), "voice": "bert", "mode": "sibling"}),
        }
    )
    assert answers["outside"]["code"] == "not_allowed"
    assert answers["good"]["state"] == "committed"
    assert answers["good"]["result"] == str(stem.with_name("spooled.bert.wav"))


def test_hostile_packets_while_it_converts(daemon: Daemon) -> None:
    daemon.start("gated").until("idle")
    bounce(daemon.stems / "lead.wav")
    wait_for((daemon.home / "converting").exists)
    hostile = (
        *(b"", b"\0", b"/", b"x" * 9000, os.urandom(512), b"/rvcd/ping\0\0,s\0\0\xff\xfe\xfd\0"),
        b"#bundle\0" + b"\0" * 8 + (-4 & 0xFFFFFFFF).to_bytes(4, "big"),  # hangs python-osc
        b"#bundle\0" + b"\0" * 8 + (0x7FFFFFFF).to_bytes(4, "big"),
        b"/" + b"*a" * 9 + b"\0,\0\0\0",
        b"/*/*\0\0\0\0,\0\0\0",
    )
    peer = Peer(daemon.port)
    for packet in hostile:
        peer.send_packet(packet)
    peer.close()
    assert daemon.status()["state"] == "busy"
    (daemon.home / "go").touch()
    assert daemon.ended(1)[0][1] == "committed"
