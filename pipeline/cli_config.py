"""`wcord config …`: the shipped configs, and what a config may say."""

from __future__ import annotations

import json
from typing import Annotated

import typer

commands = typer.Typer(no_args_is_help=True, help="List, show and explain configs.")


@commands.command("list")
def list_shipped() -> None:
    """The configs that come with the program, with what each is for; those in bench/ are for `wcord bench`."""
    from pipeline.config import SHIPPED

    for path in (*sorted(SHIPPED.glob("*.yaml")), *sorted(SHIPPED.glob("bench/*.yaml"))):
        name = path.relative_to(SHIPPED).with_suffix("").as_posix()
        first = path.read_text(encoding="utf-8").splitlines()[0]
        print(f"{name:22s} {first.removeprefix('#').strip()}")


@commands.command()
def show(
    config: Annotated[str, typer.Argument(help="YAML file, or the name of a shipped config.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="Settings in place of the config's.")] = None,
) -> None:
    """A config as a run reads it: checked, with all defaults and overrides."""
    from pipeline.config import load

    print(load(config, overrides or []).to_yaml(), end="")


@commands.command()
def explain(
    key: Annotated[str | None, typer.Argument(help="Such as train.clip, data, losses.wcord, encoder.cnn5.")] = None,
) -> None:
    """Type, range, default and meaning of a setting, or of a section; without a key, all sections."""
    from pipeline.reference import explain_all, explain_key

    print(explain_key(key) if key else explain_all())


@commands.command()
def schema() -> None:
    """The JSON schema by which editors complete and check configs."""
    from pipeline.schema import schema as made

    print(json.dumps(made(), indent=1, ensure_ascii=False))


@commands.command()
def reference() -> None:
    """The page docs/config-reference.md, in Markdown."""
    from pipeline.reference import page

    print(page(), end="")
