"""Tile analysis: which tiles of the attention matrix are empty, full or partial, proved before any value is known."""

from __future__ import annotations

from .analysis import make_plan
from .plan import Classification, Interval, Proof, Ranges, TilePlan

__all__ = ["Classification", "Interval", "Proof", "Ranges", "TilePlan", "make_plan"]
