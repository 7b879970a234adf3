"""What `natal list` names and `natal show` explains: everything a study file can refer to, from the code itself."""

from __future__ import annotations

import inspect
import json
import textwrap
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

from natal.errors import NatalError
from natal.registry import Registry, did_you_mean
from natal.study import CONTROLS, SCOPES, STRATEGIES, load_study, presets
from natal.study.audit import audits, load_audit
from natal.study.protocols import PROTOCOLS


@dataclass(frozen=True)
class Kind:
    """One kind of thing that has a name: ``line`` says in one line what a name means, ``whole`` all that is known."""

    word: str
    title: str
    names: Iterable[str]
    line: Callable[[str], str]
    whole: Callable[[str], str]


def kinds() -> list[Kind]:
    """Return the kinds that are installed, in the order of the list."""
    found = [
        Kind("study", "studies", presets(), lambda name: load_study(name).description, _study),
        Kind("audit", "audits (a paper's claims)", audits(), lambda name: load_audit(name).title, _audit),
        Kind("strategy", "strategies", STRATEGIES, _recipe, _strategy),
        Kind("scope", "scopes (how dense each layer becomes)", SCOPES, SCOPES.__getitem__, _scope),
        Kind("control", "controls", CONTROLS, CONTROLS.__getitem__, _control),
        Kind(
            "protocol",
            "protocols (recipes to copy)",
            PROTOCOLS,
            lambda name: PROTOCOLS[name].words,
            _protocol,
        ),
    ]
    if not lab_missing():
        found[2:2] = list(_of_the_lab())
    return found


def lab_missing() -> str:
    """Return why tasks, networks and criteria are not known here: training is not installed; empty where it is."""
    try:
        import natal.lab  # noqa: F401
    except NatalError as error:
        return str(error)
    return ""


def sections() -> Iterator[tuple[str, Iterator[tuple[str, str]]]]:
    """Yield what `natal list` prints: a title, and each name with its line."""
    for kind in kinds():
        yield kind.title, ((name, kind.line(name)) for name in kind.names)


def names() -> list[str]:
    """Return every name that `natal show` explains."""
    return list(dict.fromkeys(name for kind in kinds() for name in kind.names))


def explain(name: str, kind: str | None = None) -> tuple[str, list[str]]:
    """Return what a name means, and the other kinds of thing that have the same name.

    A study's file comes first, and alone and at once, so that it can be copied. Raises NatalError for an unknown name
    or kind.
    """
    if name in presets() and kind in (None, "study"):
        return _study(name), []
    known = kinds()
    if kind is not None and kind not in [k.word for k in known]:
        raise NatalError(f"--kind {kind!r} is none{did_you_mean(kind, [k.word for k in known])}")
    found = [k for k in known if name in k.names and kind in (None, k.word)]
    if not found:
        there = [n for k in known for n in k.names if kind in (None, k.word)]
        missing = lab_missing()
        cure = f"; tasks, networks and criteria are not known here: {missing}" if missing else ""
        raise NatalError(f"unknown {kind or 'name'} {name!r}{did_you_mean(name, there)}{cure}")
    return found[0].whole(name), [k.word for k in found[1:]]


# -- what reading alone knows ----------------------------------------------------------------------------


def _study(name: str) -> str:
    return presets()[name].read_text("utf-8").rstrip("\n")


def _audit(name: str) -> str:
    return audits()[name].read_text("utf-8").rstrip("\n")


def _recipe(name: str) -> str:
    recipe = STRATEGIES[name].model_dump(exclude={"name"})
    return ", ".join(f"{key} {value}" for key, value in recipe.items())


def _strategy(name: str) -> str:
    recipe = STRATEGIES[name].model_dump(exclude={"name"})
    keys = ", ".join(f"{key} = {toml(value)}" for key, value in recipe.items())
    return _page("strategy", name, "", f'strategies = ["{name}"] is short for\n    {{ {keys} }}')


def _scope(name: str) -> str:
    about = f"How dense each layer becomes: {SCOPES[name]}."
    return _page("scope", name, about, f'{{ criterion = "snip", scope = "{name}" }}')


def _control(name: str) -> str:
    about = f"The comparison that {CONTROLS[name]}."
    return _page("control", name, about, f'{{ criterion = "snip", control = "{name}" }}')


def _protocol(name: str) -> str:
    words, recipe, study = PROTOCOLS[name]
    keys = [study, *(['training.patience = "none"', 'training.target = "none"'] if "at" in recipe else [])]
    beside = "\n".join(["", "", "and in the study:", *filter(None, keys)]) if any(keys) else ""
    return _page("protocol", name, words, f"strategies = [{toml(recipe)}]{beside}")


# -- what the lab knows ----------------------------------------------------------------------------------


def _of_the_lab() -> Iterator[Kind]:
    from natal.lab.networks import networks
    from natal.lab.tasks import tasks
    from natal.pruning.criteria import criteria, traits

    def criterion(name: str) -> str:
        usage = f'strategies = ["{name}"], or {{ criterion = "{name}", scope = "erk", control = "shuffle" }}'
        return _page("criterion", name, _about(criteria, name), f"It {traits[name]}.\n\n{usage}")

    def task(name: str) -> str:
        usage = _options("tasks", "task", name, tasks[name].data, context=tasks[name].seeds)
        return _page("task", name, _about(tasks, name), usage)

    def network(name: str) -> str:
        usage = _options("networks", "network", name, networks[name], context=2)
        return _page("network", name, _about(networks, name), usage)

    yield Kind("task", "tasks", tasks, tasks.summary, task)
    yield Kind("network", "networks", networks, networks.summary, network)
    yield Kind(
        "criterion", "criteria (each also a strategy: scope global, granularity weight)", criteria,
        lambda name: f"{criteria.summary(name)} [{traits[name]}]", criterion,
    )  # fmt: skip


def _about(registry: Registry[Any], name: str) -> str:
    """Return an entry's docstring and where its code is."""
    origin = inspect.unwrap(registry.origin(registry[name]))
    return f"{inspect.getdoc(origin) or ''}\n\nSource: {origin.__module__}.{origin.__qualname__}"


def _options(key: str, word: str, name: str, function: Callable[..., Any], context: int) -> str:
    """Return an entry's options with their defaults, as a study file writes them."""
    parameters = list(inspect.signature(function).parameters.values())[context:]
    hints = get_type_hints(function)
    written = []
    for p in parameters:
        if p.kind in (p.VAR_KEYWORD, p.VAR_POSITIONAL):
            continue
        several, choices = _choices(hints.get(p.name))
        default = "needed" if p.default is p.empty else "unset" if p.default is None else toml(p.default)
        among = f"   {'any' if several else 'one'} of {', '.join(map(toml, choices))}" if choices else ""
        written.append(f"    {p.name} = {default}{among}")
    if not written:
        return f'{key} = ["{name}"]; it has no options'
    return "\n".join([f'{key} = ["{name}"], or {{ {word} = "{name}", ... }} with options:', *written])


def _choices(hint: Any) -> tuple[bool, tuple[Any, ...]]:
    """Return whether an option is a list, and the words that it, or what it lists, is one of."""
    inside = [arg for arg in get_args(hint) if get_origin(arg) is Literal]
    if inside and get_origin(hint) is not Literal:
        return True, get_args(inside[0])
    return False, get_args(hint) if get_origin(hint) is Literal else ()


def toml(value: Any) -> str:
    """Return a value as a study file writes it, a table on one line."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {toml(inner)}" for key, inner in value.items()) + " }"
    return json.dumps(value, ensure_ascii=False)


def _page(kind: str, name: str, about: str, usage: str) -> str:
    parts = [f"{kind} {name}", textwrap.indent(about, "  "), textwrap.indent(usage, "  ")]
    return "\n\n".join(part for part in parts if part)
