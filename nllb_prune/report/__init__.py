"""Score, mask and statistics files to one HTML page."""
