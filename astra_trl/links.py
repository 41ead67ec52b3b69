"""Links in the folder of a run: one that leads out of it could bring any file of this machine into what is sent."""

import os
from pathlib import Path

from astra_trl.errors import InputError


def is_inside(path: str | os.PathLike[str], folder: str | os.PathLike[str]) -> bool:
    """`True` if a path, after all links are followed, lies in a folder or is that folder."""
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def refuse_links(folder: str | os.PathLike[str]) -> None:
    """Raise `InputError` if anything in a folder is a link that leads out of it."""
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = os.path.join(place, name)
            if os.path.islink(path) and not is_inside(path, folder):
                raise InputError(
                    f"'{path}' is a link out of its folder, to '{os.path.realpath(path)}', and is not followed: put a "
                    "copy in its place if you trust it, or delete it"
                )
