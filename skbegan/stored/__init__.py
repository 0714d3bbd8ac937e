"""Arrays and files on disk: cells that are read by rows, and files that appear whole."""
