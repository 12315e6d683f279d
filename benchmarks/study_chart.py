"""Draw the table of the study in docs/method.md as a figure.

python -m benchmarks.study_chart docs/method.md docs/images/study.png
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from matplotlib.figure import Figure

OURS, OTHERS = "#1f6feb", "#6e7781"


def read_table(page: str) -> tuple[list[str], dict[str, list[tuple[float, float] | None]]]:
    """The settings, and method -> mean and standard deviation per setting (None if the method does not apply)."""
    rows = [line.strip().strip("|").split("|") for line in page.splitlines() if line.startswith("| ")]
    start = next(number for number, row in enumerate(rows) if row[0].strip() == "top-1 %")
    settings = [cell.strip() for cell in rows[start][1:]]
    methods: dict[str, list[tuple[float, float] | None]] = {}
    for name, *cells in rows[start + 1 :]:
        if len(cells) != len(settings):
            break
        found = [re.fullmatch(r"([\d.]+) ± ([\d.]+)", cell.strip()) for cell in cells]
        methods[name.strip()] = [(float(match[1]), float(match[2])) if match else None for match in found]
    return settings, methods


def draw(settings: list[str], methods: dict[str, list[tuple[float, float] | None]], path: Path) -> None:
    """Draw one panel per setting with the mean of each method and error bars of one standard deviation."""
    figure = Figure(figsize=(3.6 * len(settings), 0.3 * len(methods) + 1), layout="constrained")
    panels = figure.subplots(1, len(settings), sharey=True)
    for place, (panel, setting) in enumerate(zip(panels, settings, strict=True)):
        for row, (name, values) in enumerate(methods.items()):
            if (value := values[place]) is not None:
                colour = OURS if name.startswith("**") else OTHERS
                panel.errorbar(value[0], row, xerr=value[1], fmt="o", color=colour, capsize=3)
        panel.set_title(setting, fontsize=9)
        panel.set_xlabel("top-1 %", fontsize=8)
        panel.grid(axis="x", color="#dddddd")
        panel.tick_params(labelsize=8)
        panel.spines[["top", "right", "left"]].set_visible(False)
    panels[0].set_yticks(range(len(methods)), [name.strip("*") for name in methods])
    panels[0].invert_yaxis()
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("page", type=Path)
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    draw(*read_table(options.page.read_text()), options.out)


if __name__ == "__main__":
    main()
