"""Tell systemd how the daemon is: sd_notify(3) without a library. Elsewhere nothing happens."""

import os
import socket


def notify(*lines: str) -> bool:
    """Send `READY=1`, `STATUS=…`, `WATCHDOG=1` or `STOPPING=1`; say whether somebody was there to be told."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address[:1] not in ("/", "@"):
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as outgoing:
        outgoing.setblocking(False)  # a manager that does not listen must not hold up the daemon
        try:
            # A leading @ is how an abstract socket is written; its true name begins with NUL.
            outgoing.sendto("\n".join(lines).encode(), "\0" + address[1:] if address[0] == "@" else address)
        except OSError:
            return False
    return True


def watchdog_seconds() -> float:
    """How long systemd waits between two `WATCHDOG=1`, of this process; 0: it does not watch."""
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return 0.0
    return int(os.environ.get("WATCHDOG_USEC") or 0) / 1e6
