"""What files need beyond reading and writing: clones, flushes that last, room, and one way to replace a file.

macOS clones with copyfile(3) (COPYFILE_CLONE: a copy-on-write clone on APFS, elsewhere a copy with extended
attributes, access lists and times), Linux with the ioctl FICLONE (Btrfs, XFS) or else a copy that keeps holes.
"""

import contextlib
import ctypes
import errno
import fcntl
import hashlib
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from rvcd.errors import Code, RvcdError, write_error
from rvcd.fingerprints import Fingerprint

_FICLONE = 0x40049409
_COPYFILE_CLONE = 1 << 24  # implies EXCL, ACL, STAT, XATTR and DATA
_COPYFILE_NOFOLLOW_SRC = 1 << 18
_BLOCK_BYTES = 1 << 20
_MARGIN_BYTES = 32 << 20


def clone_file(source: Path, target: Path) -> None:
    """Make `target`, which must not exist, a copy of a file with its mode, owner, times and extended attributes.

    The two share their storage where the file system can. Raises `OSError`, and leaves no half copy then.
    """
    if sys.platform == "darwin":
        _copyfile(ctypes.CDLL(None, use_errno=True), source, target)
        return
    fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(fd, "wb", buffering=0) as writer, source.open("rb", buffering=0) as reader:
            if not _shares_storage(reader.fileno(), writer.fileno()):
                _copy_data(reader.fileno(), writer.fileno())
        _copy_attributes(source, target)
    except BaseException:
        discard(target)
        raise


def flush_file(path: Path) -> None:
    """Return when the contents of a file are on the disk itself. Raises `OSError`."""
    fd = os.open(path, os.O_RDONLY)
    try:
        if hasattr(fcntl, "F_FULLFSYNC"):  # macOS: fsync stops at the drive's cache
            with contextlib.suppress(OSError):  # network volumes have no such call
                fcntl.fcntl(fd, fcntl.F_FULLFSYNC)
                return
        os.fsync(fd)
    finally:
        os.close(fd)


def flush_folder(folder: Path) -> None:
    """Return when the names in a folder are on the disk; some network volumes cannot, and are left alone."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(fd)


def discard(path: Path) -> None:
    """Remove a draft if it is there; a failure to do so never hides the one that led here."""
    with contextlib.suppress(OSError):
        path.unlink()


def sha256(path: Path) -> str:
    """Digest of a file's bytes, hexadecimal. Raises `OSError`."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_room(folder: Path, needed_bytes: int) -> None:
    """See that a volume has so much room and a margin. Raises `RvcdError`: `disk_full`."""
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes < needed_bytes + _MARGIN_BYTES:
        raise RvcdError(
            Code.DISK_FULL,
            f"The disk of {folder} has {free_bytes / 1e6:.0f} MB free and the conversion needs "
            f"{(needed_bytes + _MARGIN_BYTES) / 1e6:.0f} MB; free some room and try again.",
        )


def disk_error(error: OSError, path: Path) -> RvcdError:
    """Say in our words why a file could not be read or written."""
    if error.errno in (errno.EACCES, errno.EPERM):
        return RvcdError(Code.PERMISSION_DENIED, f"rvcd may not touch {path}: {error.strerror}.")
    if error.errno == errno.ENOENT:
        return RvcdError(Code.NOT_FOUND, f"There is no {error.filename or path} any more.")
    return write_error(error, path)


def replace_file(target: Path, new: Path, expected: Fingerprint | None) -> None:
    """Let a flushed file of the same volume take the place of `target`, whole, if that is still as expected.

    expected: None if there must be no `target`. Raises `RvcdError`: `changed_underneath`; both files are then as
    they were. Raises `OSError`.
    """
    try:
        found = Fingerprint.of(target)
    except FileNotFoundError:
        found = None
    if found != expected:
        what = "is gone" if found is None else "was written to"
        raise RvcdError(
            Code.CHANGED_UNDERNEATH, f"{target} {what} while rvcd worked on it; nothing was replaced. Convert it again."
        )
    new.replace(target)
    flush_folder(target.parent)


def _copyfile(libc: Any, source: Path, target: Path) -> None:
    flags = _COPYFILE_CLONE | _COPYFILE_NOFOLLOW_SRC
    if libc.copyfile(os.fsencode(source), os.fsencode(target), None, ctypes.c_uint32(flags)) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), str(source), None, str(target))


def _shares_storage(source: int, target: int) -> bool:
    try:
        fcntl.ioctl(target, _FICLONE, source)
    except OSError:  # this file system copies on write not at all, or not between these two
        return False
    return True


def _copy_data(source: int, target: int) -> None:
    """Copy what was written of a file; its holes stay holes, so that a sparse file costs no room."""
    os.ftruncate(target, os.fstat(source).st_size)
    offset = 0
    while (start := _seek(source, offset, os.SEEK_DATA)) is not None:
        offset = _seek(source, start, os.SEEK_HOLE) or start
        os.lseek(source, start, os.SEEK_SET)
        os.lseek(target, start, os.SEEK_SET)
        while start < offset and (block := os.read(source, min(_BLOCK_BYTES, offset - start))):
            start += _write(target, block)


def _copy_attributes(source: Path, target: Path) -> None:
    status = source.stat()
    with contextlib.suppress(PermissionError):  # only root may give files away
        os.chown(target, status.st_uid, status.st_gid)
    shutil.copystat(source, target)


def _seek(fd: int, offset: int, whence: int) -> int | None:
    try:
        return os.lseek(fd, offset, whence)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        return None


def _write(fd: int, data: bytes) -> int:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
    return len(data)
