"""Images: where they come from, how they are checked, split, decoded, kept and changed; a new one is a row of `catalogue`."""
