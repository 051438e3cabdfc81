"""The OSC room: requests come in, answers and events go out. Nothing here knows files, the journal or the engine."""

PROTOCOL = 1
DEFAULT_PORT = 7823
"""R-V-C-D on a telephone's keys."""
