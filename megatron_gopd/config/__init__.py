"""One typed configuration tree; the class defaults are the vetted setting."""

from megatron_gopd.config.layout import Layout
from megatron_gopd.config.load import load_config, to_yaml
from megatron_gopd.config.schema import Config

__all__ = ["Config", "Layout", "load_config", "to_yaml"]
