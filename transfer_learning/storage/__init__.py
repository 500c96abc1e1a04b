"""Files: written whole or not at all, kept by key from run to run, and pickles of others read as data."""
