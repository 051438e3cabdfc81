"""Writes a WAV as Ardour's export does: its final name from the start, sizes 36 and 0 until it is closed.

Run as a program with the path. Each line on standard input is an order, answered by a line when done:
`burst` appends a tenth of a second, `close` patches the sizes and closes the file.
"""

import struct
import sys
from pathlib import Path
from typing import BinaryIO

RATE, BURST_FRAMES = 48_000, 4_800


def header(data_bytes: int, riff_bytes: int) -> bytes:
    """44 bytes: 16-bit mono at 48 kHz."""
    fmt = struct.pack("<HHIIHH", 1, 1, RATE, 2 * RATE, 2, 16)
    return (
        b"RIFF"
        + struct.pack("<I", riff_bytes)
        + b"WAVEfmt "
        + struct.pack("<I", 16)
        + fmt
        + (b"data" + struct.pack("<I", data_bytes))
    )


def finished(bursts: int, sample: int = 1000) -> bytes:
    """The whole file of a writer that was quick."""
    data = struct.pack("<h", sample) * (BURST_FRAMES * bursts)
    return header(len(data), 36 + len(data)) + data


def obey(file: BinaryIO, order: str) -> None:
    if order == "burst":
        file.write(struct.pack("<h", 1000) * BURST_FRAMES)
    elif order == "close":
        data_bytes = file.tell() - 44
        file.seek(0)
        file.write(header(data_bytes, 36 + data_bytes))
    file.flush()


def main(path: str) -> None:
    with Path(path).open("wb") as file:
        file.write(header(0, 36))
        file.flush()
        print("open", flush=True)
        for line in sys.stdin:
            obey(file, line.strip())
            if line.strip() == "close":
                break
            print(line.strip(), flush=True)
    print("closed", flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
