"""Training of chains of linear layers by hand-written, compiled steps: the fast path on a CPU.

Five ideas, none of which changes what is computed, one file each or two:

- a weight that is removed is not computed with: products skip it (`sparse`), the optimiser has no place for it
  (`chain`), a neuron that leads nowhere is left out;
- a one-hot input, or a row of tokens, is never multiplied: the first layer is a sum of the weights its ones select
  (`steps`);
- dense products keep a tile of the result in registers (`products`), and a step works through a few rows of data at a
  time, which stay in the cache;
- the whole of a step is one call of compiled code (`steps`), kept on disk (`cache`);
- every sum has one written order, and exponential, logarithm and root are our own or IEEE's (`arithmetic`,
  `optimisers`): a network's bits depend on nothing but itself, on any x86-64 CPU with FMA, whatever the number of
  threads or the libraries' choices. On ARM the same code runs, untested.

Against the engine ``torch`` only the order of sums differs.
"""

from natal.lab.engines.compiled.engine import Compiled

__all__ = ["Compiled"]
