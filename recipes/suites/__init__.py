"""Suites of `llmc eval` by name: the tasks of each, and where their data comes from."""
