"""PURE: states, keys, hashes, steps and ops. No file, clock, environment or logging is touched here."""
