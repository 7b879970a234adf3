"""Imported by the fork server: what every worker needs is loaded once, before they are forked."""

import natal.worker  # noqa: F401
from natal.engine import kernels

kernels.load()
