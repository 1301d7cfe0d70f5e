"""What the rooms agree on, as types: the JSON files of an artifact, the records of a build, and progress.

Each file of an artifact has one model, which the pipeline writes and the runtime reads. `docs/artifact-format.md` and
`llmc artifact schema` are made from them.
"""
