"""How many visual tokens each layer of an LLM holds: what `layer=` of a sieve takes."""

from tokensieve.schedules.base import PSigmoid, Schedule, Stepwise
from tokensieve.schedules.searched import Searched, g_search, greedy_search

__all__ = ["PSigmoid", "Schedule", "Searched", "Stepwise", "g_search", "greedy_search"]
