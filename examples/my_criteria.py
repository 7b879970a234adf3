"""A criterion and a task of one's own: `natal run examples/my_study.toml --out /tmp/mine` uses both."""

import torch

from natal import Data, Problem, Scores, criterion, task


@criterion("relative")
def relative(problem: Problem) -> Scores:
    """|θ₀| in units of its layer's scale, so that no layer is pruned for having small weights."""
    return {name: w.abs() * w[0].numel() ** 0.5 for name, w in problem.weights.items()}


@task("circle", loss="cross-entropy", metric="accuracy", learning_rate=1e-2, chance=0.5)
def circle(seed: int) -> Data:
    """Tell points inside a circle from points outside it; the circle holds half of the square."""
    points = 2 * torch.rand(500, 2, generator=torch.Generator().manual_seed(seed)) - 1
    inside = ((points**2).sum(1) < 2 / torch.pi).long()
    return Data(points[:400], inside[:400], points[400:], inside[400:], outputs=2)
