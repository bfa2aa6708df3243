"""A tar whose bytes depend on its content only: no times, no owners, one order."""

from __future__ import annotations

import io
import json
import tarfile
from typing import Any, BinaryIO

from oneflow_dist.data.tar import HEADER_KEY, Member, TarContents


class TarWriter:
    """Writes members one after the other into an open file, under a header that tells how they were made."""

    def __init__(self, file: BinaryIO, header: dict[str, Any]):
        self.contents = TarContents(header=header)  # as a scan would find them
        headers = {HEADER_KEY: json.dumps(header)}
        self._tar = tarfile.TarFile(fileobj=file, mode="w", format=tarfile.PAX_FORMAT, pax_headers=headers)

    def add(self, key: str, extension: str, content: bytes) -> None:
        """Append one file of a sample."""
        info = tarfile.TarInfo(f"{key}.{extension}")  # mode 0644, owner 0, time 0
        info.size = len(content)
        self._tar.addfile(info, io.BytesIO(content))
        self._tar.members.clear()  # type: ignore[attr-defined]  # it would remember them all
        padded = -(-len(content) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
        self.contents.members.append(Member(key, extension, self._tar.offset - padded, len(content)))

    def close(self) -> None:
        """Write the end of the archive; the file stays open."""
        self._tar.close()
