"""`llmc serve`: an artifact behind OpenAI's HTTP interface. Needs the extra `serve`, neither torch nor the original.

A request becomes answers (`completions`, `chat`), which wait in a queue and join the running batch (`scheduler`); what
they say goes back whole or as it comes (`replies`). `guard` lets in who may come, `server` listens and ends.
"""
