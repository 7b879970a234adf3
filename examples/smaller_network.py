"""Prune a network, see what the mask did, make it smaller: ``python examples/smaller_network.py``."""

import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F

import natal
from natal.lab.networks import born
from natal.pruning.choose import problem_of, score

# networks this small are fastest on one thread
torch.set_num_threads(1)
net = born("mlp", (194,), 97, seed=0)
x = torch.randn(256, 194, generator=torch.Generator().manual_seed(0))

mask = natal.prune(net, 0.99, "magnitude", "layerwise")
scores = score("magnitude", problem_of(net, seed=0))
print(natal.diagnose(net, mask, x, requested=0.99, scores=scores), end="\n\n")

# train the ticket in any loop ...
ticket = natal.apply(net, mask)
optimizer = torch.optim.Adam(ticket.parameters(), lr=1e-2)
loss = F.cross_entropy(ticket(x), torch.arange(256) % 97)
loss.backward()  # type: ignore[no-untyped-call]
optimizer.step()

# ... then take the same function in fewer units
small = natal.compact(ticket, mask)
torch.testing.assert_close(small(x), ticket(x))
print(natal.savings(net, small, x), end="\n\n")

# or go on training in fewer units, with the optimiser's state
compacted = natal.compact_training(ticket, mask, optimizer)
print(f"to train on: {compacted.model}, sparsity {compacted.mask.sparsity:.4f}")

with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "ticket.safetensors"
    natal.save_ticket(path, natal.Ticket(mask, net.state_dict(), provenance={"seed": 0}))
    assert natal.load_ticket(path).mask.kept == mask.kept
    print(f"mask and initial weights took {path.stat().st_size:,} bytes")
