"""Where the private unix sockets of a data folder are. The settings ask too, so that a command in another terminal finds them."""

import hashlib
import os
import tempfile
from pathlib import Path

from studio.errors import UserError

LONGEST_SOCKET_PATH = 100  # bytes; the kernel takes 107 (unix(7): sun_path)


def socket_folder(data_dir: Path) -> Path:
    """`run/` in the data folder, or a folder below the temporary one when that path would be too long for a socket."""
    folder = data_dir / "run"
    if len(bytes(folder / "engine.sock")) <= LONGEST_SOCKET_PATH:
        return folder
    return Path(tempfile.gettempdir()) / f"studio-{hashlib.sha256(bytes(data_dir)).hexdigest()[:16]}"


def redis_url(data_dir: Path) -> str:
    """The address of the embedded Redis."""
    return f"unix://{socket_folder(data_dir)}/redis.sock"


def engine_socket(data_dir: Path) -> Path:
    """Where the process that answers chats listens."""
    return socket_folder(data_dir) / "engine.sock"


def make_private(folder: Path) -> None:
    """Makes `folder` for its owner alone; refuses one that somebody else put there, which a temporary folder allows."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.geteuid():
        raise UserError(f"{folder} belongs to another user or is a link. Remove it, or choose another folder with --data-dir.")
    folder.chmod(0o700)
