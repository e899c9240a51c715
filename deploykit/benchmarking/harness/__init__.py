"""Query a runner and keep the time of every query."""
