"""The page of `prewarm report --html`: one file with its style sheet and its charts as SVG."""
