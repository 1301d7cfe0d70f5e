"""A folder as a hub's client keeps it."""

import shutil
from pathlib import Path


def cached(folder: Path, cache: Path) -> Path:
    """The snapshot, in `cache`, of a folder of files, as `snapshot_download` leaves it:
    models--org--name/snapshots/revision/file → ../../blobs/hash.
    """
    repository = cache / "models--org--name"
    snapshot, blobs = repository / "snapshots" / ("a" * 40), repository / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, file in enumerate(sorted(folder.iterdir())):
        shutil.copy(file, blobs / f"{number:064x}")
        (snapshot / file.name).symlink_to(Path("../../blobs") / f"{number:064x}")
    return snapshot
