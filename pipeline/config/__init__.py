"""Configs: settings, validation, error messages, JSON schema and reference."""

from pipeline.config.settings import Config, load

__all__ = ["Config", "load"]
