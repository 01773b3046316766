"""What the state says, for people and programs: status, coverage, metrics, notifications, HTML.

Here lives what reads the state and returns values and texts.
Not here: requests to registries or GitLab, and changes of the state.
"""
