"""The tests of prewarm, and the stand-ins that they run against."""
