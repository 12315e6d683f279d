"""What modalities may take from losses, and how long functions and modules may be.

The order of packages and wings is import-linter's, see pyproject.toml.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("wcord", "pipeline", "losses", "modalities", "benchmarks")


def too_long(path: Path) -> Iterator[str]:
    """The functions of a file over 60 lines, and the file itself if it has over 350 and does not say why."""
    text, name = path.read_text(), path.relative_to(ROOT)
    module = ast.parse(text)
    for node in ast.walk(module):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = node.end_lineno - node.lineno + 1  # type: ignore[operator]
            if lines > 60:
                yield f"{name}: {node.name} has {lines} lines"
    reason = " ".join((ast.get_docstring(module) or "").split())
    if (lines := len(text.splitlines())) > 350 and "350 lines" not in reason:
        yield f"{name} has {lines} lines, and its docstring does not say why"


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


def test_modalities_take_only_features_and_the_registry_from_losses() -> None:
    for path in (ROOT / "modalities").rglob("*.py"):
        taken = {name for name in imports(path) if name.split(".")[0] == "losses"}
        taken -= {f"losses.registry.{name}" for name in ("find", "import_class", "import_object", "near")}
        assert taken <= {"losses.Features"}, f"{path.relative_to(ROOT)} takes {taken}"


def test_functions_are_short_and_long_modules_say_why() -> None:
    paths = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    assert len(paths) > 300  # so it is not the empty folder that is short
    assert [words for path in paths for words in too_long(path)] == []
