"""The HTML report of a comparison: one page that needs no other file and no network."""
