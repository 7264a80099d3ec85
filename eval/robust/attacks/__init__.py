"""Attacks by name: ours, AutoAttack, and the classes of three libraries."""

from eval.robust.attacks.budget import Attempt, Budget, Plan
from eval.robust.attacks.catalogue import LIBRARIES, PLAIN, check_attack_name, plan_attack

__all__ = ["LIBRARIES", "PLAIN", "Attempt", "Budget", "Plan", "check_attack_name", "plan_attack"]
