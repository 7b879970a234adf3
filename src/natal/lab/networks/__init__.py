"""Networks a study can train."""

from natal.lab.networks.mlp import mlp

__all__ = ["mlp"]
