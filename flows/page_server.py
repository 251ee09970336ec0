"""Serves the reports and clips of one folder to this machine: `python -m flows.page_server DIR PORT`."""

from __future__ import annotations

import sys
from functools import partial
from http import HTTPStatus
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


class Pages(SimpleHTTPRequestHandler):
    """Files by name; no listings, nothing that lies elsewhere, nothing hidden."""

    def send_head(self) -> Any:
        """The file that was asked for, or 404."""
        file, folder = Path(self.translate_path(self.path)), Path(self.directory).resolve()
        if file.is_symlink() or not file.is_file() or file.resolve().parent != folder or file.name.startswith("."):
            self.send_error(HTTPStatus.NOT_FOUND)
            return None
        return super().send_head()


def main() -> None:
    """Serve until ended."""
    folder, port = sys.argv[1:]
    ThreadingHTTPServer(("127.0.0.1", int(port)), partial(Pages, directory=folder)).serve_forever()


if __name__ == "__main__":
    main()
