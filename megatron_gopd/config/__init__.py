"""One typed configuration tree; the class defaults are the vetted setting."""

from megatron_gopd.config.algorithms import Grpo
from megatron_gopd.config.gopd import Gopd
from megatron_gopd.config.layout import Layout
from megatron_gopd.config.load import load_config, read_config, to_yaml
from megatron_gopd.config.objective import Objective
from megatron_gopd.config.schema import Config

__all__ = ["Config", "Gopd", "Grpo", "Layout", "Objective", "load_config", "read_config", "to_yaml"]
