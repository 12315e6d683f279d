"""Imports only go down: losses <- modalities <- pipeline, and inside the pipeline by the floors listed here."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = ["losses", "modalities", "pipeline"]
ABOVE_LOSSES = {"modalities": {"losses.Features"}}
"""What modalities may take from losses: the types that encoders return, and nothing else."""

PIPELINE = [
    {"errors", "run_format", "host", "scratch", "tar", "remote"},
    {"configfile", "components", "explain", "config", "shards"},
    {"schema"},
    {"reference"},
    {
        "members",
        "tabletop_shapes",
        "tabletop_sound",
        "tabletop",
        "splits",
        "parallel",
        "progress",
        "scan",
        "balance",
        "depths",
    },
    {"samples", "skipped", "draw", "schedule"},
    {"sidecar", "join"},
    {"source", "decoder"},
    {"masks"},
    {"prepare", "paired"},
    {"recipes", "jobs", "pack", "check", "stream", "in_memory"},
    {"network", "gradient_cache", "recheck", "launch"},
    {"gradient_checkpointing"},
    {"model"},
    {"ahead"},
    {"checkpoint", "collapse", "cost", "run_folder", "runs", "profile", "probes", "nonfinite", "stopping", "sharding"},
    {"space", "extras", "resume"},
    {"trackers", "report_samples"},
    {"log", "gallery"},
    {"kept", "train", "evaluate"},
    {"cache"},
    {"inputs", "portable", "latency"},
    {"student", "index"},
    {"search"},
    {"embed"},
    {"charts", "compare", "report_tables", "cells"},
    {"report_words", "report_masks", "bench_table"},
    {"report_classes", "report_gallery", "report_results", "report_run"},
    {"report"},
    {"graph", "card", "serve"},
    {"export"},
    {"demo", "bench", "cli_config", "cli_pack", "cli", "__main__"},
]


def imports(path: Path) -> set[str]:
    """The absolute names that a file imports, `package.module.name` for `from package.module import name`."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("package", FLOORS)
def test_packages_import_only_downwards(package: str) -> None:
    above = FLOORS[FLOORS.index(package) + 1 :]
    for path in (ROOT / package).rglob("*.py"):
        wrong = {name for name in imports(path) if name.split(".")[0] in above}
        assert not wrong, f"{path.relative_to(ROOT)} imports {wrong}, which lies on a floor above it"


def test_modalities_take_only_features_from_losses() -> None:
    for path in (ROOT / "modalities").rglob("*.py"):
        taken = {name for name in imports(path) if name.split(".")[0] == "losses"}
        assert taken <= ABOVE_LOSSES["modalities"], f"{path.relative_to(ROOT)} takes {taken}"


def test_pipeline_imports_only_downwards() -> None:
    floor = {name: number for number, names in enumerate(PIPELINE) for name in names}
    for path in (ROOT / "pipeline").rglob("*.py"):
        own = path.relative_to(ROOT / "pipeline").parts[0].removesuffix(".py")
        if own == "__init__":
            continue
        assert own in floor, f"pipeline/{own} has no floor: add it to PIPELINE in this test"
        for name in imports(path):
            if name.startswith("pipeline.") and (other := name.split(".")[1]) in floor:
                assert floor[other] <= floor[own], f"pipeline/{own} imports pipeline/{other} from a floor above it"
