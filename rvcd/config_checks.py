"""What values of the configuration may be: each check returns the value as it is used, or raises `ValueError`.

The error is the end of a sentence that begins with the key: "must be ...".
"""

import ipaddress
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rvcd.errors import RvcdError
from rvcd.settings import Settings


def check_whole(low: int, high: int) -> Callable[[object], int]:
    """Make a check for whole numbers in a range."""

    def check(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ValueError(f"must be a whole number from {low} to {high}, not {value!r}")
        return value

    return check


def check_number(low: float, high: float) -> Callable[[object], float]:
    """Make a check for numbers in a range."""

    def check(value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise ValueError(f"must be a number from {low:g} to {high:g}, not {value!r}")
        return value

    return check


def check_choice(*choices: str) -> Callable[[object], str]:
    """Make a check for one of some words."""

    def check(value: object) -> str:
        if not isinstance(value, str) or value not in choices:
            raise ValueError(f"must be one of {', '.join(choices)}, not {value!r}")
        return value

    return check


def check_flag(value: object) -> bool:
    """A boolean."""
    if not isinstance(value, bool):
        raise ValueError(f"must be true or false, not {value!r}")  # noqa: TRY004  # checks raise one kind of error
    return value


def check_name(value: object) -> str:
    """Text that is not empty."""
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"must be a name in quotes, not {value!r}")
    return value


def check_path(value: object) -> Path:
    """An absolute path, or one from the user's home."""
    if isinstance(value, str) and value.strip() and "\0" not in value:
        path = Path(value)
        if path.parts[0] == "~":
            path = path.expanduser()
        if path.is_absolute():
            return path
    raise ValueError(f"must be a path that starts with / or ~/, not {value!r}")


def check_paths(value: object) -> tuple[Path, ...]:
    """A list of paths."""
    if not isinstance(value, list):
        raise ValueError(f"must be a list of paths, not {value!r}")  # noqa: TRY004
    return tuple(map(check_path, value))


def check_address(value: object) -> str:
    """A literal loopback address: names resolve differently on different machines, and clients miss the daemon."""
    try:
        address = ipaddress.ip_address(str(value))
    except ValueError:
        raise ValueError(f"must be an address in digits such as 127.0.0.1, not {value!r}") from None
    if not address.is_loopback:
        raise ValueError(f"can be reached by other machines at {value}; use 127.0.0.1 or ::1")
    return str(address)


def check_setting(name: str, value: object) -> Any:
    """One setting, by itself."""
    if name == "fill_unvoiced":
        return check_flag(value)
    try:
        Settings(**{name: value})  # type: ignore[arg-type]  # that is what it checks
    except RvcdError as error:
        raise ValueError(error.sentence.removeprefix(f"{name} ").removesuffix(".")) from error
    except OverflowError as error:
        raise ValueError(f"is too large: {value!r}") from error
    return value
