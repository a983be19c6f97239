"""How we show it: figures from results, a page from a run folder, lines for a terminal.

The room is a verb as well: `firstlight.report(run)` draws a run's pictures and page again.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from firstlight.report.page import Page


class _Verb(ModuleType):
    def __call__(self, run: Any) -> Page:
        """Draw the pictures and the page of a run or run folder again; return the page."""
        from firstlight.report.opened import open_run

        return open_run(run).report()


# A submodule hides a function of the same name in the package, so the module itself is made callable.
sys.modules[__name__].__class__ = _Verb
