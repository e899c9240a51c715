"""The steps from a TARGET to a bundle, used by export, build and bench."""
