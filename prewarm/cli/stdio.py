"""The standard streams as a command finds them: closed, full, or with a reader that has gone."""

from __future__ import annotations

import io
import os
import select
import sys
from typing import TYPE_CHECKING, BinaryIO, TextIO, cast

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


class Output(io.FileIO):
    """A stream whose end ends nothing else: what it does not take is dropped, the cause is kept.

    The work is done and recorded whether somebody reads of it or not.
    """

    failure: OSError | None = None

    def write(self, data: ReadableBuffer, /) -> int:
        """Write what the stream takes, to the last byte; all of it counts as written."""
        rest = memoryview(data).cast("B")
        try:
            while self.failure is None and rest:
                taken = super().write(rest)
                if taken is None:  # whoever shares the stream made it non-blocking
                    select.select([], [self], [])
                rest = rest[taken or 0 :]
        except OSError as error:
            self.failure = error
        return memoryview(data).nbytes


def settle() -> Output:
    """Make the standard streams safe to write to, and return what is below stdout.

    The number of a stream that was closed (`>&-`) is taken, so that no file that is opened later
    gets it and what is printed.
    """
    if sys.stdin is None:
        os.open(os.devnull, os.O_RDWR)
    sys.stdout, output = _over(1, sys.stdout)
    sys.stderr, _ = _over(2, sys.stderr)
    return output


def _over(number: int, stream: TextIO | None) -> tuple[TextIO, Output]:
    descriptor = os.open(os.devnull, os.O_RDWR) if stream is None else number
    output = Output(descriptor, "wb", closefd=False)
    unbuffered = number == 2
    # A signal may come within a line of the log, and is logged at once: a buffer refuses that. A
    # name that the terminal's encoding lacks is no reason to fail either.
    text = io.TextIOWrapper(
        cast(BinaryIO, output) if unbuffered else io.BufferedWriter(output),
        encoding=stream.encoding if stream else "utf-8",
        errors="backslashreplace",
        line_buffering=output.isatty(),
        write_through=unbuffered,
    )
    return text, output
