"""Protocols of the literature by name: when weights are cut on the training clock, and what is wound back after it.

A protocol is not a kind of its own: it is a recipe, data to copy into a study's ``strategies``.
"""

from __future__ import annotations

from typing import Any, NamedTuple


class Protocol(NamedTuple):
    """A protocol: what it is called in words, its recipe as a study writes it, and what else the study must say."""

    words: str
    recipe: dict[str, Any]
    study: str = ""


_TICKET: dict[str, Any] = {
    "criterion": "magnitude", "scope": "layerwise", "at": "end", "rounds": "levels", "rates": {"last": 0.5},
    "rewind": "init",
}  # fmt: skip
_DYNAMIC: dict[str, Any] = {
    "criterion": "magnitude", "scope": "erk", "at": {"from": "init", "to": "75%", "every": "100it"},
}  # fmt: skip

PROTOCOLS: dict[str, Protocol] = {
    "one-shot": Protocol("one-shot at birth", {"criterion": "snip"}),
    "early": Protocol("early pruning (SNIP at step 500)", {"criterion": "snip", "at": "500it"}),
    "early-rewound": Protocol(
        "mask from step 500, weights from birth", {"criterion": "snip", "at": "500it", "rewind": "init"}
    ),
    "lottery-ticket": Protocol("lottery ticket (Frankle & Carbin 2019)", _TICKET),
    "weight-rewinding": Protocol(
        "with weight rewinding (Frankle et al. 2020)",
        {"criterion": "magnitude", "at": "end", "rounds": "levels", "rewind": "500it"},
    ),
    "rate-rewinding": Protocol(
        "with learning-rate rewinding (Renda et al. 2020)",
        {"criterion": "magnitude", "at": "end", "rounds": "levels", "rewind": "clock"},
    ),
    "fine-tuning": Protocol(
        "prune after training, fine-tune",
        {"criterion": "magnitude", "at": "end"},
        'training.retrain = "20ep"',
    ),
    "gradual": Protocol(
        "gradual magnitude (Zhu & Gupta 2017)",
        {"criterion": "magnitude", "at": {"from": "10%", "to": "70%", "every": "100it"}},
    ),
    "set": Protocol("SET (Mocanu et al. 2018)", {**_DYNAMIC, "regrow": "random"}),
    "rigl": Protocol("RigL (Evci et al. 2020)", {**_DYNAMIC, "regrow": "gradient"}),
}
"""The rows of the table in docs/studies.md."""
