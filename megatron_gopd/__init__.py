"""Large-scale Generalized On-Policy Distillation (G-OPD / ExOPD) of language models."""

__version__ = "0.1.0"
