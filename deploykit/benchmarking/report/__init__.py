"""Reports of a benchmark run: CSV, Markdown and one HTML page that needs nothing beside it."""
