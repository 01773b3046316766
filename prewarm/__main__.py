"""`python -m prewarm`."""

from prewarm.cli.main import main

main()
