"""Gives tasks to worker processes: of this machine, or of a Ray cluster.

`Crew` hands out tasks; `Hands` are the workers that take them, `Processes` or `RayActors`. A worker that dies is replaced, and
another one does its task again: a task that is done twice writes the same files.
"""

from fairanon.engines.choice import devices_of, hands_of, in_shares
from fairanon.engines.crew import Crew
from fairanon.engines.processes import Processes
from fairanon.engines.work import Start, Task, Tell, Work

__all__ = ["Crew", "Processes", "Start", "Task", "Tell", "Work", "devices_of", "hands_of", "in_shares"]
