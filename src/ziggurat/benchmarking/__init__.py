"""Networks timed against their peers and against what this machine can do at most."""
