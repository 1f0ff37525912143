"""The study at the published size, on the corpora and weights that are at hand."""
