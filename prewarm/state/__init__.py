"""What prewarm remembers, in SQLite or PostgreSQL: pulls, images, runs, CI usage, locks.

Here live all SQL statements, the schema and its migrations, the file locks, and the clock.
Not here: registries, GitLab, or decisions about what to copy.
"""
