"""OSC address patterns."""

import pytest

from rvcd.osc.patterns import is_pattern, matches

ADDRESS = "/rvcd/model/load"


@pytest.mark.parametrize(
    "pattern",
    [
        ADDRESS,
        "/rvcd/*/load",
        "/*/*/*",
        "/rvcd/model/l???",
        "/rvcd/m*d*l*/*",
        "/rvcd/[a-m]odel/load",
        "/rvcd/[!x-z]odel/load",
        "/rvcd/{voice,model}/{load,unload}",
        "/rvcd/{mo,model}*/lo{a,ad}{d,}",
        "/rvcd/*model*/**load",
    ],
)
def test_a_pattern_matches(pattern: str) -> None:
    assert matches(pattern, ADDRESS)


@pytest.mark.parametrize(
    "pattern",
    [
        "",
        "/rvcd/*",
        "/*",
        "*",
        "/rvcd?model/load",
        "/rvcd[!x]model/load",
        "/rvcd/model/loa",
        "/rvcd/model/load?",
        "/rvcd/model/load/*",
        "/rvcd/[n-z]odel/load",
        "/rvcd/{voice,mode}/load",
        "/rvcd/[model/load",
        "/rvcd/{model/load",
        "/rvcd/[]model/load",
    ],
)
def test_a_pattern_does_not_match(pattern: str) -> None:
    assert not matches(pattern, ADDRESS)


def test_many_stars_take_a_bounded_number_of_steps() -> None:
    """A backtracking matcher would not live to see the end of this."""
    assert not matches("/" + "*a" * 120 + "b", "/" + "a" * 250)
    assert matches("/" + "*a" * 120, "/" + "a" * 250)


def test_plain_addresses_are_no_patterns() -> None:
    assert not is_pattern("/rvcd/job")
    assert all(is_pattern(f"/rvcd/{char}") for char in "*?[]{}")
