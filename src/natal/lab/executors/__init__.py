"""Where trainings run, behind ``concurrent.futures``."""

from natal.lab.executors.processes import Processes, prepare

__all__ = ["Processes", "prepare"]
