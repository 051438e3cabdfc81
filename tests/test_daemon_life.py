"""How the daemon starts, follows its configuration and ends, and what it leaves alone."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from rvcd.errors import Code
from tests.support.daemon import ROOT, Daemon, bounce, refused, wait_for

FORBIDDEN = ("numpy", "mlx", "soundfile", "scipy", "soxr", "huggingface_hub", "rich")


# Trouble with files.


def test_a_read_only_stem_is_left_alone(running: Daemon) -> None:
    stem = running.home / "elsewhere" / "locked.wav"
    original = bounce(stem)
    stem.chmod(0o444)
    assert running.run(stem, "model", "anna")[1::2] == ("failed", "permission_denied")
    assert stem.read_bytes() == original


def test_hard_links_are_left_alone(running: Daemon) -> None:
    stem = running.home / "elsewhere" / "one.wav"
    original = bounce(stem)
    os.link(stem, stem.with_name("two.wav"))
    assert running.run(stem, "model", "anna")[1::2] == ("failed", "not_allowed")
    assert stem.read_bytes() == original


# Life.


def test_a_second_instance_is_refused(running: Daemon) -> None:
    refusal = running.spawn()
    assert refusal.wait(20) == 1
    assert f"(process {running.pid})" in running.log()
    assert running.spawn(arguments=("--supervised",)).wait(20) == 0
    assert running.status()["state"] == "idle"


def test_the_configuration_is_read_again(daemon: Daemon) -> None:
    daemon.start().until("idle")
    other = daemon.home / "other"
    daemon.write_config(f'[[folder]]\npath = "{other}"\nvoice = "bert"\nsettle_seconds = 0.3\n')
    assert daemon.process is not None
    daemon.process.send_signal(signal.SIGHUP)

    def folders() -> list[str]:
        with daemon.client() as client:
            return [str(row.args[1]) for row in client.collect("/rvcd/watch", "list")]

    wait_for(lambda: folders() == [str(other)])
    daemon.write_config("[engine]\nprecison = 'float16'\n")
    status = daemon.until("degraded")
    assert f"{daemon.home}/rvcd.toml:2" in status["detail"]
    assert "engine.precison" in status["detail"]
    assert folders() == [str(other)], "what was believed before still holds"
    daemon.configure()
    daemon.until("idle")
    wait_for(lambda: folders() == [str(daemon.stems)])


def test_it_starts_with_a_bad_configuration(daemon: Daemon) -> None:
    daemon.write_config('[[folder]]\npath = "relative"\n')
    status = daemon.start().until("degraded")
    assert f"{daemon.home}/rvcd.toml:2" in status["detail"]
    assert "folder.path" in status["detail"]
    daemon.configure()
    daemon.until("idle")


def test_a_lost_token_lets_nobody_in(daemon: Daemon) -> None:
    token = daemon.home / "token"
    token.touch()
    daemon.configure(f'token_file = "{token}"')
    status = daemon.start().until("degraded")
    assert str(token) in status["detail"]
    assert refused(daemon, "/rvcd/watch", "pause") == Code.UNAUTHORIZED


def test_sigterm_puts_the_job_back(daemon: Daemon) -> None:
    daemon.start("gated").until("idle")
    original = bounce(daemon.stems / "lead.wav")
    wait_for((daemon.home / "converting").exists)
    engine = daemon.engine_pid
    begun = time.monotonic()
    assert daemon.stop() == 143
    assert time.monotonic() - begun < 4
    assert engine is not None
    assert not (daemon.home / "daemon.json").exists()
    assert (daemon.stems / "lead.wav").read_bytes() == original
    daemon.start()
    assert [row[1] for row in daemon.ended(1)] == ["committed"]


def test_the_supervisor_stays_small(running: Daemon) -> None:
    bounce(running.stems / "small.wav")
    running.ended(1)
    status = Path(f"/proc/{running.pid}/status").read_text()
    resident_kb = int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1])
    assert resident_kb < 80_000
    mapped = Path(f"/proc/{running.pid}/maps").read_text()
    for name in FORBIDDEN:
        assert f"/site-packages/{name}/" not in mapped
    code = "import sys, rvcd.daemon; print(*{name.partition('.')[0] for name in sys.modules})"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert not set(modules.split()) & set(FORBIDDEN)
