"""``python -m deploykit`` is the command line."""

from deploykit.cli import main

main(prog_name="deploykit")
