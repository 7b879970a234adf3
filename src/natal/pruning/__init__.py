"""Pruning any ``torch.nn.Module``: masks, criteria, diagnosis, compaction. Knows nothing of studies but a recipe."""

from natal.errors import require

require("torch", "safetensors", "threadpoolctl")
