"""What a training will cost, before it begins: memory, operations, time.

May import `training` and what is below it.
"""

from .machine import Machine, peak_memory
from .plan import CostPlan, plan

__all__ = ["CostPlan", "Machine", "peak_memory", "plan"]
