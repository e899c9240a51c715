"""The verbs that a user knows: each one calls stages in order, and does nothing else."""
