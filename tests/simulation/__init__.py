"""The whole service against a hostile world, on a virtual clock: see `run.simulate`."""

from .plants import PLANTS
from .run import Report, simulate

__all__ = ["PLANTS", "Report", "simulate"]
