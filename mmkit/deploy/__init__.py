"""Models at work: what they cost on a machine."""
