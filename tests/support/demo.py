"""`make demo`: the daemon at work, from the command line, in a folder of its own.

A stem that lands in the hot folder and one that an OSC message names are converted in place; one of them is undone.
Any promise that is broken ends the demo with a sentence and exit code 1.
"""

import contextlib
import hashlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.support import seeded  # noqa: E402  (the repository is no installed package)
from tests.support.osc_peer import Peer  # noqa: E402

OUTPUT = ROOT / "demo-output"
HOME, HOT_FOLDER, SESSION, LOG = (OUTPUT / name for name in ("home", "hot folder", "session", "daemon.log"))
PATIENCE_SECONDS = 60.0
QUIET_SECONDS = 4.0
"""Twice the settle time: a file that the daemon took for a bounce would be queued by then."""


def main() -> None:
    shutil.rmtree(OUTPUT, ignore_errors=True)
    for folder in (HOME, HOT_FOLDER, SESSION):
        folder.mkdir(parents=True)
    print("This demo's models are of the real architecture and size, but their weights are random: no voice is heard.")
    write_models(OUTPUT / "checkpoints")
    checkpoints = [OUTPUT / "checkpoints" / name for name in ("content", "rmvpe.pt", "demo.pth", "demo.index")]
    rvcd("import", *checkpoints)
    rvcd("voices")
    configure()
    with daemon() as peer:
        dropped, hot_job = drop_a_stem(peer)
        name_a_stem(peer)
        rvcd("status")
        undo(peer, hot_job, dropped)
    say("Every promise was kept.")


def write_models(folder: Path) -> None:
    folder.mkdir()
    seeded.voice(folder / "demo.pth", seed=3)
    seeded.retrieval_index(folder / "demo.index", vectors=2000, width=768, seed=4)
    seeded.content_encoder(folder / "content", seed=1)
    seeded.pitch_model(folder / "rmvpe.pt", seed=2)


def configure() -> None:
    lines = [
        '[defaults]\nvoice = "demo"\nsemitones = 2.0',
        f"[osc]\nroots = [{json.dumps(str(SESSION))}]",
        f"[[folder]]\npath = {json.dumps(str(HOT_FOLDER))}",
    ]
    (HOME / "rvcd.toml").write_text("\n\n".join(lines) + "\n", encoding="utf-8")
    rvcd("config", "check")


def drop_a_stem(peer: Peer) -> tuple["Take", int]:
    """A stereo bounce of 24 bits, moved into the hot folder."""
    say("A bounce lands in the hot folder.")
    take = Take(HOT_FOLDER / "lead vocal.wav", rate=44100, channels=2, subtype="PCM_24", seed=5)
    job = follow(peer, take.path)
    take.must_be_converted_in_place()
    return take, job


def name_a_stem(peer: Peer) -> None:
    """A mono stem elsewhere, which a client names over OSC; the packet is python-osc's, the server is rvcd's own."""
    say("A client names a stem elsewhere.")
    take = Take(SESSION / "Don't stop, döubles.wav", rate=48000, channels=1, subtype="FLOAT", seed=6)
    command = ["oscsend", "127.0.0.1", str(peer.server[1]), "/rvcd/convert", "ss", "demo-1", str(take.path)]
    print("\n$", shlex.join(command))
    peer.send("/rvcd/convert", "demo-1", str(take.path), types="ss")
    follow(peer, take.path)
    take.must_be_converted_in_place()


def undo(peer: Peer, job: int, take: "Take") -> None:
    rvcd("undo", str(job))
    print(f"  sha256 of the take  {take.digest}\n  after the undo      {digest(take.path)}")
    promise(digest(take.path) == take.digest, "the undone stem is the take, bit for bit")
    events = follow_for(peer, QUIET_SECONDS)
    promise("/rvcd/job/queued" not in events, "the restored take is not taken for a new bounce")


class Take:
    """A stem as it was bounced, and what a conversion may not change of it."""

    def __init__(self, path: Path, *, rate: int, channels: int, subtype: str, seed: int) -> None:
        mono = seeded.sung_stem(4.0, rate, seed=seed)
        draft = OUTPUT / path.name
        soundfile.write(draft, np.stack([mono] * channels, axis=1), rate, subtype=subtype)
        self.path, self.digest, self.form = path, digest(draft), form(draft)
        draft.rename(path)

    def must_be_converted_in_place(self) -> None:
        print(f"  sha256 before {self.digest[:16]}…  after {digest(self.path)[:16]}…  {self.form}")
        promise(digest(self.path) != self.digest, f"{self.path.name} is converted")
        promise(form(self.path) == self.form, f"{self.path.name} keeps its size, length, rate, channels and depth")


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def form(path: Path) -> str:
    info = soundfile.info(path)
    return (
        f"{path.stat().st_size} bytes, {info.frames} frames, {info.samplerate} Hz, {info.channels} ch, {info.subtype}"
    )


@contextlib.contextmanager
def daemon() -> Iterator[Peer]:
    """`rvcd run` on a free port, and a client that is subscribed to it; ended as Ctrl-C ends it, come what may."""
    print("\n$ rvcd run --port 0 &", flush=True)
    started = time.monotonic()
    with LOG.open("w") as log:
        process = subprocess.Popen(command("run", "--port", "0"), cwd=ROOT, env=environment(), stderr=log)
    try:
        peer = Peer(port_of(process))
        print(f"  answers OSC {time.monotonic() - started:.1f} s after its start:", *peer.ask("/rvcd/version")[1][:4])
        while peer.ask("/rvcd/status")[1][0] == "loading":
            promise(time.monotonic() - started < PATIENCE_SECONDS, "the engine warms up")
            time.sleep(0.1)
        print(f"  warm after {time.monotonic() - started:.1f} s")
        peer.send("/rvcd/notify", 1, 600, "jobs", types="iis")
        yield peer
        promise(end(process) == 128 + signal.SIGINT, "the daemon ends cleanly")
    except BaseException:
        print(LOG.read_text()[-3000:], file=sys.stderr)
        raise
    finally:
        end(process)


def port_of(process: "subprocess.Popen[bytes]") -> int:
    """Where the daemon says it listens."""
    note = HOME / "daemon.json"
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not note.exists():
        promise(process.poll() is None and time.monotonic() < deadline, "the daemon starts")
        time.sleep(0.02)
    return int(json.loads(note.read_text())["port"])


def end(process: "subprocess.Popen[bytes]") -> int:
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
    try:
        return process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def follow(peer: Peer, path: Path) -> int:
    """Print what is told of a stem until its job has ended well; return the job."""
    job = 0
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        promise(time.monotonic() < deadline, f"{path.name} is converted within {PATIENCE_SECONDS:.0f} s")
        address, args, _ = peer.receive()
        promise(address != "/rvcd/fail", f"{path.name} is accepted: {args}")
        if address == "/rvcd/job/queued" and args[2] == str(path):
            job = args[1]
        if not address.startswith("/rvcd/job/") or args[1] != job:
            continue
        if address == "/rvcd/job/progress":
            fraction, stage = args[2:4]
            print(f"  job {job}  {'#' * round(30 * fraction):30}  {100 * fraction:3.0f} %  {stage}", flush=True)
            continue
        print(f"  job {job}  {address.removeprefix('/rvcd/job/')}", flush=True)
        promise(address not in ("/rvcd/job/failed", "/rvcd/job/cancelled"), f"{path.name} is converted: {args}")
        if address == "/rvcd/job/done":
            return job


def follow_for(peer: Peer, seconds: float) -> list[str]:
    """Addresses of all that is told in that time."""
    time.sleep(seconds)
    return [address for address, _ in peer.heard()]


def rvcd(*arguments: str | Path) -> None:
    """Run the command line as a user would, in the demo's own home."""
    shown = [os.path.relpath(a, ROOT) if isinstance(a, Path) else a for a in arguments]
    print("\n$ rvcd", shlex.join(shown), flush=True)
    run = subprocess.run(command(*arguments), check=False, cwd=ROOT, env=environment(), timeout=PATIENCE_SECONDS)
    promise(run.returncode == 0, f"rvcd {arguments[0]} succeeds, but its exit code is {run.returncode}")


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "rvcd", *map(str, arguments)]


def environment() -> dict[str, str]:
    return {**os.environ, "RVCD_HOME": str(HOME)}


def say(sentence: str) -> None:
    print(f"\n{sentence}", flush=True)


def promise(is_kept: bool, what: str) -> None:
    if not is_kept:
        sys.exit(f"broken: {what}")


if __name__ == "__main__":
    main()
