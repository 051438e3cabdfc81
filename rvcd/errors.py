"""The one error that users see: a stable code for programs, a sentence for people."""

import errno
from enum import StrEnum
from pathlib import Path


class Code(StrEnum):
    """Every failure a user can meet. Codes never change their meaning and are never reused."""

    # checkpoints
    NOT_A_CHECKPOINT = "not_a_checkpoint"
    TRUNCATED_FILE = "truncated_file"
    UNSAFE_PICKLE = "unsafe_pickle"
    MISSING_TENSOR = "missing_tensor"
    UNEXPECTED_TENSOR = "unexpected_tensor"
    WRONG_SHAPE = "wrong_shape"
    BAD_CONFIG = "bad_config"
    NO_CONFIG = "no_config"
    UNKNOWN_VERSION = "unknown_version"
    UNSUPPORTED_VOCODER = "unsupported_vocoder"
    UNSUPPORTED_EMBEDDER = "unsupported_embedder"
    UNSAFE_ARCHIVE = "unsafe_archive"
    # retrieval indexes
    BAD_INDEX = "bad_index"
    EMPTY_INDEX = "empty_index"
    INDEX_WIDTH = "index_width"
    # models and voices
    MISSING_MODEL = "missing_model"
    UNKNOWN_VOICE = "unknown_voice"
    BAD_SPEAKER = "bad_speaker"
    WRONG_ENCODER = "wrong_encoder"
    BAD_SETTING = "bad_setting"
    # stems
    UNREADABLE_STEM = "unreadable_stem"
    EMPTY_STEM = "empty_stem"
    NOT_FINITE = "not_finite"
    STEM_TOO_LONG = "stem_too_long"
    BAD_SAMPLE_RATE = "bad_sample_rate"
    # files and network
    NOT_FOUND = "not_found"
    NOT_WRITABLE = "not_writable"
    ALREADY_EXISTS = "already_exists"
    DISK_FULL = "disk_full"
    DOWNLOAD_FAILED = "download_failed"
    HASH_MISMATCH = "hash_mismatch"

    # jobs and files under a DAW
    UNSUPPORTED_FORMAT = "unsupported_format"
    FILE_UNSTABLE = "file_unstable"
    FILE_IN_USE = "file_in_use"
    CHANGED_UNDERNEATH = "changed_underneath"
    PERMISSION_DENIED = "permission_denied"
    OFFLINE_FILE = "offline_file"
    NO_BACKUP = "no_backup"
    BUSY = "busy"
    CANCELLED = "cancelled"
    SUPERSEDED = "superseded"
    GPU_ERROR = "gpu_error"
    OUT_OF_MEMORY = "out_of_memory"
    ENGINE_DIED = "engine_died"
    SHUTTING_DOWN = "shutting_down"
    # requests
    BAD_REQUEST = "bad_request"
    UNKNOWN_ADDRESS = "unknown_address"
    NOT_ALLOWED = "not_allowed"
    UNAUTHORIZED = "unauthorized"
    NOT_RUNNING = "not_running"
    ALREADY_RUNNING = "already_running"
    BAD_CONFIGURATION = "bad_configuration"
    SERVICE_FAILED = "service_failed"
    # us
    INTERNAL = "internal"


class RvcdError(Exception):
    """Something the user can act on.

    `code` is stable and meant for programs; the message is one sentence (or two) that says what is
    wrong, with the offending value, and what to do about it.
    """

    def __init__(self, code: Code, sentence: str) -> None:
        super().__init__(sentence)
        self.code = code
        self.sentence = sentence

    def __reduce__(self) -> tuple[type["RvcdError"], tuple[Code, str]]:
        return type(self), (self.code, self.sentence)


def write_error(error: OSError, path: Path) -> RvcdError:
    """Say in our words why a file could not be written."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return RvcdError(Code.DISK_FULL, f"The disk of {path.parent} is full; free some room and try again.")
    return RvcdError(Code.NOT_WRITABLE, f"{path} cannot be written: {error.strerror or error}.")
