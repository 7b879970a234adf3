"""Networks by name: from a row's shape and the number of outputs to a module, and its birth from a seed.

A network is a decorated function; its keyword parameters are the keys of a study file::

    @network("one-layer")
    def one_layer(shape: tuple[int, ...], outputs: int, *, bias: bool = True) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), outputs, bias=bias))

``shape`` is that of one row of inputs, `natal.lab.shapes.Tokens` for rows of tokens. Initial weights come from torch's
global generator, which natal seeds before the call and gives back as it was.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from natal.determinism import defaults_given_back
from natal.errors import NatalError
from natal.lab.networks.draws import SameEverywhere
from natal.lab.networks.init import redraw
from natal.lab.options import settled
from natal.lab.shapes import example, said
from natal.pruning.mask import weight_names
from natal.registry import Registry
from natal.streams import stream
from natal.study import Network
from natal.wording import told

Builder = Callable[..., nn.Module]
"""``(shape, outputs, **options) -> module``: float32, on the CPU."""

networks: Registry[Builder] = Registry("network")


def network(name: str) -> Callable[[Builder], Builder]:
    """Register the decorated function, ``(shape, outputs, **options) -> nn.Module``, as a network."""
    file = networks.register(name)

    def check(build: Builder) -> Builder:
        leading = list(inspect.signature(build).parameters.values())[:2]
        if len(leading) < 2 or any(p.kind is inspect.Parameter.KEYWORD_ONLY for p in leading):
            raise NatalError(
                f"network {name!r} must be a function of the shape of a row and the number of outputs: "
                "def build(shape, outputs, *, ...)"
            )
        return file(build)

    return check


def options(choice: Network) -> dict[str, Any]:
    """Return the options of a choice that differ from their defaults; raise NatalError for one that is not allowed."""
    return settled(f"network {choice.entry!r}", networks[choice.entry], choice.options, context=2)


def born(
    choice: Network | str,
    shape: tuple[int, ...],
    outputs: int,
    seed: int,
    dtype: torch.dtype = torch.float32,
) -> nn.Module:
    """Return a newborn network for rows of ``shape``: every initial value drawn in float32 from ``seed`` alone.

    A name stands for the network with its defaults. The choice's ``init`` is followed; its ``default`` is what the
    network's own layers draw, the same bits as building them right after ``torch.manual_seed(seed)``. Global generator,
    default dtype and default device of the caller are neither used nor changed. Raises NatalError if the network cannot
    read such rows, has no layer to prune, or does not answer a row with ``outputs`` numbers.
    """
    choice = Network.model_validate(choice) if isinstance(choice, str) else choice
    settings = options(choice)
    _try(choice.entry, settings, shape, outputs)
    with _world(seed):
        net = _build(choice.entry, settings, shape, outputs)
        redraw(net, choice.init.scheme, choice.init.scale, seed)
    return net.to(dtype)


def parameters(choice: Network, shape: tuple[int, ...], outputs: int) -> int:
    """Return how many parameters the network of a choice has, if possible without making their values."""
    settings = options(choice)
    with _world(0):
        try:
            with torch.device("meta"):
                net = _build(choice.entry, settings, shape, outputs)
        except NatalError:
            # it looks at values while it is built, and meta tensors have none
            net = _build(choice.entry, settings, shape, outputs)
    return sum(p.numel() for p in net.parameters())


def _build(entry: str, settings: dict[str, Any], shape: tuple[int, ...], outputs: int) -> nn.Module:
    with _named(entry, shape), defaults_given_back():
        net = networks[entry](shape, outputs, **settings)
    if not isinstance(net, nn.Module):
        raise NatalError(f"network {entry!r} must return a torch.nn.Module, got {type(net).__name__}")
    return net


_tried: set[tuple[Any, ...]] = set()


def _try(entry: str, settings: dict[str, Any], shape: tuple[int, ...], outputs: int) -> None:
    """Make sure, once a process, that a network reads rows of ``shape`` and can be pruned."""
    vocabulary = getattr(shape, "vocabulary", None)
    key = (networks[entry], repr(sorted(settings.items())), tuple(shape), vocabulary, outputs)
    if key in _tried:
        return
    with _world(0), torch.no_grad():
        net = _build(entry, settings, shape, outputs).eval()
        if any(isinstance(p, UninitializedParameter) for p in net.parameters()):
            raise NatalError(f"network {entry!r} has lazy layers; give them their sizes, from its shape")
        if not weight_names(net):
            raise NatalError(
                f"network {entry!r} has no linear or convolution layer, so nothing can be pruned"
            )
        if not any(p.requires_grad for p in net.parameters()):
            raise NatalError(f"network {entry!r} has no parameter that learns; leave requires_grad at True")
        with _named(entry, shape):
            answer = net(example(shape, 2))
    if not isinstance(answer, Tensor) or answer.shape != (2, outputs):
        got = tuple(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__
        raise NatalError(
            f"network {entry!r} must answer each row with {outputs} numbers, (2, {outputs}) for two, got {got}"
        )
    _tried.add(key)


@contextmanager
def _world(seed: int) -> Iterator[None]:
    """Give torch's global generator a stream of ``seed``, float32 and the CPU, whatever the caller's are."""
    with (
        defaults_given_back(),
        torch.random.fork_rng(devices=[]),
        torch.device("cpu"),
        SameEverywhere(),
    ):
        torch.set_rng_state(stream(seed, "init").get_state())
        torch.set_default_dtype(torch.float32)
        yield


@contextmanager
def _named(entry: str, shape: tuple[int, ...]) -> Iterator[None]:
    """Turn whatever a network says of a shape into one line that begins with its name."""
    try:
        yield
    except NatalError as error:
        raise NatalError(f"network {entry!r} {error}") from None
    except Exception as error:
        what = told(f"{type(error).__name__}: {error}")
        raise NatalError(f"network {entry!r} cannot read {said(shape)}: {what}") from error
