"""Files and caches: atomic writes, the run directory, the cache of arrays, downloads, safe readers of foreign files."""
