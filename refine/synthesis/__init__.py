"""Everything else that a single robust classifier can do to images.

Santurkar et al. 2019, arXiv:1906.09453. task.py says what a task is; loop.py runs it on tensors, run.py on image sets.
"""

from refine.network import Network
from refine.synthesis.config import Ball
from refine.synthesis.loop import iterates, synthesize
from refine.synthesis.smallest_change import Closest, Search, closest
from refine.synthesis.task import Objective, Source, Task, Work

__all__ = [
    "Ball",
    "Closest",
    "Network",
    "Objective",
    "Search",
    "Source",
    "Task",
    "Work",
    "closest",
    "iterates",
    "synthesize",
]
