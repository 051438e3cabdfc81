"""Whether a folder lies on a network volume, where no event tells what others write."""

import ctypes
import re
import struct
import sys
from pathlib import Path

_HOST_SHARES = frozenset(("9p", "virtiofs", "vboxsf", "vmhgfs", "prl_fs"))
_NETWORK_TYPES = _HOST_SHARES | {
    *("nfs", "nfs4", "cifs", "smb2", "smb3", "smbfs", "ncpfs", "afs", "ceph", "glusterfs", "lustre", "davfs")
}
_MNT_LOCAL = 0x1000  # macOS, sys/mount.h
_STATFS_BYTES = 2168  # macOS, struct statfs with 64-bit inodes
_STATFS_FLAGS_OFFSET = 64


def is_network_volume(path: Path) -> bool:
    """Whether others may write to the volume of `path` without this system noticing; False where nobody can tell."""
    try:
        if sys.platform == "darwin":
            return not is_local(_statfs(path))
        return is_network_type(filesystem_type(path, Path("/proc/self/mountinfo").read_text(errors="surrogateescape")))
    except OSError:
        return False


def is_network_type(filesystem: str) -> bool:
    """Whether Linux's name of a filesystem means a network. Any FUSE filesystem may: they are polled, which is safe."""
    return filesystem in _NETWORK_TYPES or filesystem.startswith("fuse.")


def filesystem_type(path: Path, mountinfo: str) -> str:
    """The type of the filesystem that holds an absolute, resolved path, from the text of /proc/self/mountinfo.

    The deepest mount point above the path counts, and among equals the one mounted last. Empty if none is.
    """
    best, found = -1, ""
    for line in mountinfo.splitlines():
        mount, _, filesystem = line.partition(" - ")
        point = Path(re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), mount.split(" ")[4]))
        if len(point.parts) >= best and path.is_relative_to(point):
            best, found = len(point.parts), filesystem.split(" ")[0]
    return found


def is_local(statfs: bytes) -> bool:
    """Whether macOS's `struct statfs` tells of a local volume."""
    (flags,) = struct.unpack_from("=I", statfs, _STATFS_FLAGS_OFFSET)
    return bool(flags & _MNT_LOCAL)


def _statfs(path: Path) -> bytes:
    library = ctypes.CDLL(None, use_errno=True)
    # Intel keeps the old layout under the plain name.
    call = getattr(library, "statfs$INODE64", None) or library.statfs
    buffer = ctypes.create_string_buffer(_STATFS_BYTES)
    if call(bytes(path), buffer) != 0:
        raise OSError(ctypes.get_errno(), "statfs failed", str(path))
    return buffer.raw
