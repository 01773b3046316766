"""prewarm keeps the container images that GitLab CI really uses warm in local mirrors."""

__version__ = "0.1.0"
