"""Imported by the fork server: what every worker needs is loaded once, before they are forked."""

import natal.lab.worker  # noqa: F401
from natal.lab.engines import ENGINES

for engine in ENGINES.values():
    engine.prepare("cpu")
