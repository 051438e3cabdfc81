"""The table of measured figures."""

import json
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path

SEED = 1
"""Of every checkpoint and stem of the parity suite."""


def package_version(name: str) -> str:
    """Name and installed version, as reports and recordings quote them."""
    return f"{name} {version(name)}"


@dataclass(frozen=True)
class Row:
    """One figure and what it was held against."""

    compared: str
    package: str
    measure: str
    figure: float
    limit: str
    seed: int = SEED

    def to_markdown(self) -> str:
        """A line of the table."""
        return f"| {self.compared} | {self.package} | {self.measure} | {self.figure:.3g} | {self.limit} | {self.seed} |"


@dataclass
class Report:
    """Collects figures; each is noted before it is judged."""

    rows: list[Row] = field(default_factory=list)

    def at_most(self, compared: str, package: str, measure: str, figure: float, limit: float) -> None:
        self.rows.append(Row(compared, package_version(package), measure, figure, f"≤ {limit:g}"))
        assert figure <= limit

    def at_least(self, compared: str, package: str, measure: str, figure: float, limit: float) -> None:
        self.rows.append(Row(compared, package_version(package), measure, figure, f"≥ {limit:g}"))
        assert figure >= limit

    def to_markdown(self) -> str:
        """A table, a figure a line."""
        head = "| compared | reference | measure | figure | limit | seed |\n| --- | --- | --- | --- | --- | --- |"
        return "\n".join([head, *(row.to_markdown() for row in self.rows)])

    def write(self, path: Path) -> None:
        """Write `path` with the suffixes `.md` and `.json`."""
        path.with_suffix(".md").write_text(self.to_markdown() + "\n", encoding="utf-8")
        path.with_suffix(".json").write_text(json.dumps([asdict(row) for row in self.rows], indent=1), encoding="utf-8")
