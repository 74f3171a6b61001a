"""A web server in a thread that misbehaves as it is told, for tests of what is downloaded."""

import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PIECE = 4096


class Mirror(ThreadingHTTPServer):
    """Serves `content` by path. Each GET takes the next of `moods`, the last one again and again; `seen` has (path, headers)."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.content: dict[str, bytes] = {}
        self.version = '"1"'
        self.moods: list[str | int] = ["well"]
        self.seen: list[tuple[str, dict[str, str]]] = []
        self.closing = threading.Event()
        self.gave_up = False  # waiting, in silence, for the client to go
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def ranges(self) -> list[str | None]:
        """What part each GET has asked for."""
        return [headers.get("Range") for _, headers in self.seen]

    def close(self) -> None:
        self.closing.set()
        self.shutdown()
        self.server_close()

    def handle_error(self, *_: object) -> None:
        """Clients that are killed or give up are what these tests are about."""


class _Handler(BaseHTTPRequestHandler):
    server: Mirror

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        server = self.server
        server.seen.append((self.path, dict(self.headers)))
        mood = server.moods.pop(0) if len(server.moods) > 1 else server.moods[0]
        whole = server.content.get(self.path)
        if whole is None or isinstance(mood, int):
            return self.send_error(mood if isinstance(mood, int) else 404)
        start = self.start_of_range(whole) if mood not in ("no ranges", "long") else 0
        if start == len(whole) > 0:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(whole)}")
            return self.end_headers()
        self.send_head(mood, whole, start)
        self.send_body(mood, whole[start:])

    def start_of_range(self, whole: bytes) -> int:
        asked = self.headers.get("Range")
        if not asked or self.headers.get("If-Range") != self.server.version:
            return 0
        return min(int(asked.removeprefix("bytes=").rstrip("-")), len(whole))

    def send_head(self, mood: str | int, whole: bytes, start: int) -> None:
        self.send_response(206 if start else 200)
        self.send_header("ETag", self.server.version)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(whole) - 1}/{len(whole)}")
        if mood == "cut in chunks":
            self.send_header("Transfer-Encoding", "chunked")
        elif mood != "no length":
            self.send_header("Content-Length", str(len(whole) - start + (10 if mood == "long" else 0)))
        self.end_headers()

    def send_body(self, mood: str | int, body: bytes) -> None:
        if mood == "cut in chunks":
            self.wfile.write(f"{len(body):x}\r\n".encode())
        if mood in ("cut", "stall", "cut in chunks"):
            self.wfile.write(body[: len(body) // 2])
            if mood == "stall":
                self.server.gave_up = not self.server.closing.wait(30)
        elif mood == "drip":
            for first in range(0, len(body), PIECE):
                self.wfile.write(body[first : first + PIECE])
                time.sleep(0.02)
        else:
            self.wfile.write(body)
