"""The daemon's health: whether its loop goes on, and how its last sync ended."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from prewarm.core.errors import AlreadyRunningError, PrewarmError, Problem
from prewarm.core.text import printable
from prewarm.reports.notifications import bug_problem
from prewarm.reports.report import Report, sentence


@dataclass
class Health:
    """What /healthz tells."""

    broken_off: Problem | None = None
    """What broke the last sync off, so that it has no report."""
    _failed: str = ""

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Note how the sync in the body ends where it raises; a lock that is held says nothing."""
        try:
            yield
        except AlreadyRunningError:
            raise
        except PrewarmError as error:
            self._note(Problem("error", error.code, "sync", error.text, error.cure))
            raise
        except Exception as error:
            self._note(bug_problem(error))
            raise

    def told(self, report: Report) -> None:
        """Note how a sync ended that has a report."""
        self.broken_off = None
        first = next((one for one in report.problems if one.severity == "error"), None)
        failed = report.exit_code in (1, 3)
        self._failed = printable(f"{sentence(report)}; {first}") if failed else ""

    def ill(self, *, goes_on: bool) -> str:
        """Return what is wrong, in one line; nothing where all is well."""
        if not goes_on:
            return "the daemon hangs: see its log, and start it anew"
        return f"the last sync failed: {self._failed}" if self._failed else ""

    def _note(self, problem: Problem) -> None:
        self.broken_off = problem
        self._failed = printable(str(problem))
