"""One verb per file, each from a noun to a new noun; the order is in `deploykit.pipeline`."""
