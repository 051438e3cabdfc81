"""The README's tables are those that the code dispatches by."""

import subprocess
import sys
from pathlib import Path

from rvcd.osc.messages import EVENTS, REPLIES
from rvcd.osc.methods import METHODS, OPTIONS, readme

ROOT = Path(__file__).parents[1]
START, END = "<!-- osc-methods -->", "<!-- /osc-methods -->"


def test_the_readme_holds_the_generated_tables() -> None:
    text = (ROOT / "README.md").read_text()
    assert text.count(START) == text.count(END) == 1
    found = text.split(START)[1].split(END)[0].strip()
    assert found == readme(), f"Put the output of `python -m rvcd.osc.methods` between {START} and {END}."


def test_the_tables_name_every_address_and_option() -> None:
    tables = readme()
    for row in (*METHODS, *REPLIES, *EVENTS):
        assert f"\n| `{row.address}` | " in tables
    for key in OPTIONS:
        assert f"\n| `{key}` | " in tables


def test_arguments_are_as_many_as_types() -> None:
    for message in (*REPLIES, *EVENTS):
        assert message.types == "" or len(message.types) == message.args.count(",") + 1, message
    for method in METHODS:
        names = [name for name in method.args.split(", ") if name not in ("", "pairs", "anything")]
        assert len(names) == len(method.types), method


def test_only_what_every_peer_knows_is_sent() -> None:
    assert {tag for message in (*REPLIES, *EVENTS) for tag in message.types} == set("ifs")


def test_the_module_prints_the_tables() -> None:
    program = [sys.executable, "-m", "rvcd.osc.methods"]
    run = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout == readme() + "\n"
