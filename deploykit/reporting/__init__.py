"""Reports as HTML pages, each one file that loads nothing: bundles, and what all pages share."""
