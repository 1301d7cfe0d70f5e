"""Imported first, it has GPTQModel start where there are two processors.

Version 7.6 refuses to ("Virtual pool 'model_loader:cpu' requests 2 workers but parent 'cpu' only has 1"), so it is told
of three; how many it gets is the caller's matter.
"""

import os

_found = os.cpu_count() or 1
os.cpu_count = lambda: max(_found, 3)
