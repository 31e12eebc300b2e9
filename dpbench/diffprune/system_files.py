"""Files that an operating system adds to folders and archives: none of them is data."""

from pathlib import PurePath

_FOLDERS = (
    "__MACOSX",
    *("@eaDir", "#recycle", "@__thumb"),  # Synology, QNAP
    *("$RECYCLE.BIN", "System Volume Information"),  # Windows
)
_PAX_HEADERS = "PaxHeader"  # beginning of a folder's name: what a tar of before POSIX makes of extended headers


def is_system_file(path: PurePath) -> bool:
    """Return True if a path, from the folder or archive it is in, is hidden or below a system's own folder.

    The pictures that macOS writes beside others are hidden: ._0001.png beside 0001.png.
    """
    parts = [part for part in path.parts if part not in (".", "..")]
    return any(part.startswith((".", _PAX_HEADERS)) or part in _FOLDERS for part in parts)
