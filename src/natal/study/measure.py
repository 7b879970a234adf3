"""What a study measures beside its trainings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator

from natal.study.base import MOST, Model
from natal.study.clock import moment


def _connectivity(value: Any) -> Any:
    if value is None:
        return None
    known = {"from": ["init"], "orders": 2, "points": 30}
    if not isinstance(value, Mapping) or "from" not in value or set(value) - set(known):
        raise ValueError(
            'must be a table { from = ["init", "500it"], orders = 2, points = 30 }, of which from is needed'
        )
    table: dict[str, Any] = {**known, **value}
    if not isinstance(table["from"], list | tuple) or not table["from"]:
        raise ValueError(f'from lists the clocks of states, such as ["init", "500it"], got {table["from"]!r}')
    for name in ("orders", "points"):
        if type(table[name]) is not int or not 2 <= table[name] <= MOST:
            raise ValueError(f"{name} must be a whole number from 2 to {MOST}, got {table[name]!r}")
    return {**table, "from": [moment(clock) for clock in table["from"]]}


class Measure(Model):
    """What is measured beside every row's training.

    ``connectivity``: linear mode connectivity (Frankle et al. 2020). From each row's states at the clocks ``from`` as
    many trainings go on as there are ``orders``: the row's own, and others that differ from it in the order of the data
    alone. Then the network is measured at ``points`` on the line from the row's last weights to the others'.
    """

    connectivity: Annotated[dict[str, Any] | None, BeforeValidator(_connectivity)] = None
