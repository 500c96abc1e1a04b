"""The prediction server: its HTTP interface, its page, batching, and drift against the validation images."""
