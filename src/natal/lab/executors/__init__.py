"""Where trainings run, behind ``concurrent.futures``."""

from natal.lab.executors.processes import InProcess, Processes, prepare

__all__ = ["InProcess", "Processes", "prepare"]
