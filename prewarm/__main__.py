"""`python -m prewarm`."""

from prewarm.cli import main

main()
