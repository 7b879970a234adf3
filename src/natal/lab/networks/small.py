"""The control ``small-dense``: a dense network of the same family with as many parameters as a pruned one keeps."""

from __future__ import annotations

import inspect
from typing import get_type_hints

from natal.errors import NatalError
from natal.lab.networks.network import networks, options, parameters
from natal.study import Network

STEPS = 10_000
"""A width that is not a whole number is sought among this many equal parts of the network's own."""


def small_dense(choice: Network, shape: tuple[int, ...], outputs: int, budget: int) -> Network:
    """Return the choice with its ``width`` lowered: the widest network with at most ``budget`` parameters.

    At most, so that the control never has the advantage; all parameters count, biases and norms too, since a pruned
    network keeps its own. Every shipped network has the option ``width``; one of a plugin may, as a whole number or a
    factor. Raises NatalError for a network without it, and for a budget below that of the narrowest.
    """
    build = networks[choice.entry]
    width = inspect.signature(build).parameters.get("width")
    default = width.default if width else None
    if isinstance(default, bool) or not isinstance(default, int | float):
        raise NatalError(
            f"control 'small-dense' needs a width to lower, and network {choice.entry!r} has no option 'width' with a "
            "number as its default"
        )
    given = options(choice)
    widest = given.get("width", default)
    whole = get_type_hints(build).get("width") is int

    def narrowed(step: int) -> Network:
        width = step if whole else round(widest * step / STEPS, 10)
        return choice.model_copy(update={"options": {**choice.options, "width": width}})

    def fits(step: int) -> bool:
        return parameters(narrowed(step), shape, outputs) <= budget

    low, high = 1, int(widest) if whole else STEPS
    if not fits(low):
        least = parameters(narrowed(low), shape, outputs)
        raise NatalError(
            f"control 'small-dense': the narrowest network {choice.entry!r} has {least} parameters, more than the "
            f"{budget} that the pruned one keeps; lower the sparsity"
        )
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return narrowed(low)
