"""Reports as web pages: for each a file that gathers its content, and a template."""
