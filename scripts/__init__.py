"""A package, so that no other `scripts` on a machine's path takes its place."""
