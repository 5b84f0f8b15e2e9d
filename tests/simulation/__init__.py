"""The whole service against hostile peers and sources, on a virtual clock: see `run.simulate`."""

from .injected_bugs import INJECTED_BUGS
from .run import Report, simulate

__all__ = ["INJECTED_BUGS", "Report", "simulate"]
