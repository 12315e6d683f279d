"""Configs: settings, validation, error messages, JSON schema and reference."""

from typing import TYPE_CHECKING

from pipeline.common.lazy import hand_on

if TYPE_CHECKING:
    from pipeline.config.settings import Config as Config
    from pipeline.config.settings import load as load

__getattr__ = hand_on(__name__, {"Config": "settings", "load": "settings"})
