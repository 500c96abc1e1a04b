"""What the machine has, what is used of it and why, and what it does meanwhile."""
