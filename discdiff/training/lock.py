"""One run per output folder: a lock that the system lets go of when its process ends, however it ends."""

from __future__ import annotations

import json
import logging
import os
import socket
from pathlib import Path
from types import TracebackType

from discdiff.manifest import not_written

try:
    import fcntl
except ImportError:  # no such locks on this system
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

LOCK = ".lock"


class FolderLock:
    """Holds `folder/.lock`, which names this process and machine, from `take` to `release`.

    A file left behind by a process that was killed is taken over. Within one process folders can be locked again.
    """

    def __init__(self, folder: str | Path) -> None:
        self.path = Path(folder) / LOCK
        self._handle: int | None = None

    def take(self) -> None:
        """Raises BlockingIOError (an OSError) naming the other process where one writes into the folder."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if fcntl is None:
            logger.warning("%s: this system has no file locks, nothing keeps a second run out", self.path.parent)
            return
        while self._handle is None:
            try:
                handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
            except OSError as error:
                raise not_written(self.path, error) from error
            try:
                # of the process, not of the open file: workers that outlive a killed run do not keep it
                fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                owner = _owner(os.read(handle, 4096))
                os.close(handle)
                raise BlockingIOError(
                    error.errno, f"{self.path.parent} belongs to {owner}: stop it, or choose another folder"
                ) from error
            except OSError as error:
                os.close(handle)
                logger.warning("%s cannot be locked (%s): nothing keeps a second run out", self.path.parent, error)
                return
            if self._is_current(handle):
                self._handle = handle
            else:  # its owner removed it between our opening and locking
                os.close(handle)
        try:
            os.ftruncate(self._handle, 0)
            os.write(self._handle, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode())
        except OSError:  # a full disk: the lock holds, only its name is missing
            logger.warning("%s could not be filled in", self.path)

    def release(self) -> None:
        """Remove the file and let go of the lock."""
        if self._handle is not None:
            handle, self._handle = self._handle, None
            self.path.unlink(missing_ok=True)
            os.close(handle)

    def __enter__(self) -> FolderLock:
        self.take()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def _is_current(self, handle: int) -> bool:
        try:
            return os.path.samestat(os.fstat(handle), os.stat(self.path))
        except FileNotFoundError:
            return False


def _owner(text: bytes) -> str:
    try:
        data = json.loads(text)
        return f"process {int(data['pid'])} on {data['host']}, which is running"
    except (ValueError, KeyError, TypeError):
        return "another process, which is running"
