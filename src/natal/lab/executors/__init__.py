"""Where trainings run, behind ``concurrent.futures``: an adapter an engine, each of which is its own client."""

from natal.lab.executors.named import NAMES, opened
from natal.lab.executors.processes import Processes, prepare
from natal.lab.executors.workers import Given, Unstarted, Workers

__all__ = ["NAMES", "Given", "Processes", "Unstarted", "Workers", "opened", "prepare"]
