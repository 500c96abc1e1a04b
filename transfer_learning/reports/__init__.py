"""What people read in a browser: for each page a file that gathers its content, and a template."""
