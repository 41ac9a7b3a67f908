"""Batches as a pure function of a key, and what data is by content. No file is written here."""
