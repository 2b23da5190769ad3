"""A server on this machine that sends, cuts, stalls and lies as a test says."""

import contextlib
import hashlib
import http.server
import threading

import numpy as np

BODY = np.random.default_rng(0).integers(0, 256, 3_000_000, dtype=np.uint8).tobytes()
SHA, MD5 = hashlib.sha256(BODY).hexdigest(), hashlib.md5(BODY).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves `server.body` as `server.script` says, one entry a request; the last entry stays.

    ok: whole, with ranges. cut: closes after a third of what was asked for. stall: sends a third and waits.
    ignore: whole, whatever range was asked for. endless, drip: without a length and an end, fast or a byte at a time.
    A number: that status.
    """

    def do_GET(self):
        server, asked = self.server, self.headers.get("Range", "")
        act = server.script.pop(0) if len(server.script) > 1 else server.script[0]
        server.log.append((act, asked))
        if isinstance(act, int):
            self.send_response(act)
            self.end_headers()
            return
        if act in ("endless", "drip"):
            self.send_response(200)
            self.end_headers()
            with contextlib.suppress(OSError):
                while not server.release.wait(0.02 if act == "drip" else 0):
                    self.wfile.write(b"x" if act == "drip" else b"x" * 50_000)
            return
        start = int(asked.removeprefix("bytes=").removesuffix("-") or 0) if act != "ignore" else 0
        if start >= len(server.body):
            self.send_response(416)
            self.end_headers()
            return
        rest = server.body[start:]
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(server.body) - 1}/{len(server.body)}")
        self.send_header("Content-Length", str(len(rest)))
        self.end_headers()
        self.wfile.write(rest if act in ("ok", "ignore") else rest[: len(rest) // 3])
        if act == "stall":
            self.wfile.flush()
            server.release.wait(20)

    def log_message(self, *args):
        pass


@contextlib.contextmanager
def serving():
    """The server, while the block runs."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.body, server.script, server.log, server.release = BODY, ["ok"], [], threading.Event()
    server.url = f"http://127.0.0.1:{server.server_port}/photos.bin"
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield server
    server.release.set()
    server.shutdown()
    server.server_close()
