"""`wcord config …`: list, show and explain configs."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from pipeline.common.console import say, say_data

commands = typer.Typer(no_args_is_help=True, help="List, show and explain configs and their settings.")


@commands.command("list", epilog="\b\nExample:\n  wcord config list")
def list_shipped() -> None:
    """List the shipped configs. Those in bench/ are for `wcord bench`."""
    from pipeline.config.shipped import SHIPPED

    for path in (*sorted(SHIPPED.glob("*.yaml")), *sorted(SHIPPED.glob("bench/*.yaml"))):
        name = path.relative_to(SHIPPED).with_suffix("").as_posix()
        first = path.read_text(encoding="utf-8").splitlines()[0]
        say(f"{name:22s} {first.removeprefix('#').strip()}")


@commands.command(epilog="\b\nExample:\n  wcord config show rgb_to_depth train.steps=2000")
def show(
    config: Annotated[str, typer.Argument(help="YAML file, or name of a shipped config.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Settings that override the config: section.key=value …")
    ] = None,
) -> None:
    """Print the complete config of a run: validated, with all defaults and overrides."""
    from pipeline.config.settings import load

    say_data(load(config, overrides or []).to_yaml())


@commands.command(epilog="\b\nExamples:\n  wcord config explain train.clip\n  wcord config explain losses.wcord")
def explain(
    key: Annotated[
        str | None, typer.Argument(help="Setting or section, such as train.clip, data, losses.wcord, encoder.cnn5.")
    ] = None,
) -> None:
    """Explain a setting: type, range, default and meaning. Without a key, list all sections."""
    from pipeline.config.reference import explain_all, explain_key

    say(explain_key(key) if key else explain_all())


@commands.command(epilog="\b\nExample:\n  wcord config schema > wcord.schema.json")
def schema() -> None:
    """Print the JSON schema of configs, which editors use for completion and validation."""
    from pipeline.config.json_schema import schema as made

    say_data(json.dumps(made(), indent=1, ensure_ascii=False) + "\n")


@commands.command(epilog="\b\nExample:\n  wcord config reference > docs/config-reference.md")
def reference() -> None:
    """Print the config reference (docs/config-reference.md) as Markdown."""
    from pipeline.config.reference import page

    say_data(page())
