"""Reference definitions: one architecture family is one file that reads like its paper."""
