"""images.yml: its keys, the reader that reports every problem with its line, sample, JSON Schema.

Here lives what the file may contain. What the rest of prewarm gets is `core.settings`.
Not here: what is done with a setting.
"""
