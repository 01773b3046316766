"""Where demand comes from: GitLab's job history, CI definitions, job logs, runner logs.

Here lives what finds out which images CI uses, and the client of GitLab's API.
Not here: how much an image is wanted (`planning`), and requests to registries.
"""
