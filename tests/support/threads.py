"""The same work by many threads at once."""

from __future__ import annotations

import threading
from collections.abc import Callable


def failures_at_once(work: Callable[[], object], count: int = 8) -> list[BaseException]:
    """Do the work in so many threads at once; return what they raised."""
    failures: list[BaseException] = []

    def one() -> None:
        try:
            work()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=one) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return failures
