"""Values and arithmetic that all packages share: references, platforms, manifests, budgets, errors.

Here live frozen values, functions of their arguments, and small helpers for text, files and URLs.
Not here: SQL, HTTP requests, child processes, the clock, or an import of another package.
"""
