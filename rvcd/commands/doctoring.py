"""`rvcd doctor`: look whether everything is there and computes right."""

import argparse
from pathlib import Path

from rvcd import paths
from rvcd.commands.output import DONE, FAILED, print_json
from rvcd.config import Config, load, read
from rvcd.doctor import Finding, Subject, Verdict, examine
from rvcd.errors import RvcdError


def run(arguments: argparse.Namespace) -> int:
    """Run all checks; fail if one of them does."""
    findings = examine(_subject(arguments.config))
    if arguments.json:
        print_json([finding.to_json() for finding in findings])
    else:
        print("\n".join(line for finding in findings for line in _lines(finding)))  # noqa: T201
    return FAILED if any(finding.verdict is Verdict.FAIL for finding in findings) else DONE


def _subject(path: Path | None) -> Subject:
    """What is configured, as far as it can be read."""
    error = None
    try:
        config = load(path)
    except RvcdError as found:
        error = found
        file = path or paths.config_file()
        config = read(file)[0] if file.exists() else Config()
    folders = [place for folder in config.folders for place in (folder.path, folder.out) if place]
    return Subject(list(dict.fromkeys(folders)), config.osc.address, config.osc.port, error)


def _lines(finding: Finding) -> list[str]:
    remedy = [f"{'':20}{finding.remedy}"] if finding.remedy else []
    return [f"{finding.verdict:4}  {finding.check:14}{finding.sentence}", *remedy]
