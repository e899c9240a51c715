"""One function per command: the order of the steps and nothing else."""
