"""SNIP multiplies weight and gradient. What is the gradient worth alone? `compare_all.toml` puts it to the test."""

from natal import Problem, Scores, criterion
from natal.pruning.criteria import gradient, leaves


@criterion("gradient-size", needs="data")
def gradient_size(problem: Problem) -> Scores:
    """|∂L/∂θ|: keeps the weights that the loss pulls hardest, however small they are."""
    weights = leaves(problem.weights)
    slopes = gradient(problem.loss_at(weights), weights)
    return {name: slope.abs() for name, slope in slopes.items()}
