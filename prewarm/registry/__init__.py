"""The client of the OCI distribution API: HTTP, tokens, logins, redirects, retries and errors.

Here live the requests to upstreams and mirrors, and what the host's files say about them.
Not here: which images are wanted, the budget, or the state.
"""
