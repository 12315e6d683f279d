"""What modalities may take from losses. The order of packages and wings is import-linter's, see pyproject.toml."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]


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
