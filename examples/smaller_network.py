"""Prune a network, see what the mask did, make it smaller: ``python examples/smaller_network.py``."""

import tempfile
from pathlib import Path

import torch

from natal.compaction import compact, compact_training, savings
from natal.doctor import collapse_sparsity, diagnose
from natal.flow import masked
from natal.interop import Ticket, load_ticket, save_ticket
from natal.masks import Mask, prunable, select
from natal.nets import mlp

# networks this small are fastest on one thread
torch.set_num_threads(1)
net = mlp(194, 128, 97, seed=0)
scores = {name: w.abs() for name, w in prunable(net).items()}
print(f"global magnitude first empties a layer at sparsity {collapse_sparsity(scores):.4f}")

mask = Mask(select(scores, 0.99, scope="layerwise"))
x = torch.randn(256, 194, generator=torch.Generator().manual_seed(0))
print(diagnose(net, mask, x, requested=0.99), end="\n\n")

# the same function, in fewer units
small = compact(net, mask)
torch.testing.assert_close(small(x), masked(net, mask)(x))
print(savings(net, small, x), end="\n\n")

# the same training, with the optimiser's state
compacted = compact_training(net, mask, torch.optim.Adam(net.parameters(), lr=1e-2))
print(f"to train on: {compacted.model}, sparsity {compacted.mask.sparsity:.4f}")

with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "ticket.safetensors"
    save_ticket(path, Ticket(mask, net.state_dict(), provenance={"seed": 0, "criterion": "magnitude"}))
    assert load_ticket(path).mask.kept == mask.kept
    print(f"mask and initial weights took {path.stat().st_size:,} bytes")
