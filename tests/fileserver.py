"""A web server on 127.0.0.1 that hands out one file, well or badly, as a test tells it to."""

import contextlib
import http.server
import re
import threading


class FileServer(http.server.ThreadingHTTPServer):
    """Serves `content` under any path; `behaviours` say how, one for each request, the last for all that follow.

    requests: the Range headers of the requests so far, None for those without. held: is set once a request is in the
    middle of its answer under "hold"; release: lets it go on.
    """

    daemon_threads = True

    def __init__(self, content, *behaviours, headers=None):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.content = content
        self.behaviours = list(behaviours) or ["good"]
        self.headers = {} if headers is None else headers
        self.requests, self.paths, self.if_range = [], [], []
        self.held, self.release = threading.Event(), threading.Event()
        self.lock = threading.Lock()

    @property
    def address(self):
        return f"http://127.0.0.1:{self.server_port}/file.bin"

    def next_behaviour(self):
        with self.lock:
            return self.behaviours.pop(0) if len(self.behaviours) > 1 else self.behaviours[0]

    def handle_error(self, request, client_address):
        """A client that goes away is no news here."""


class _Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_GET(self):
        server = self.server
        with server.lock:
            server.requests.append(self.headers.get("Range"))
            server.paths.append(self.path)
            server.if_range.append(self.headers.get("If-Range"))
        behaviour = server.next_behaviour()
        if isinstance(behaviour, int):
            self.send_error(behaviour)
        else:
            getattr(self, behaviour)(server.content)

    def answer(self, status, body, length=None, **headers):
        self.send_response(status)
        for name, value in {**self.server.headers, **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        if length != "unsaid":
            self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = True

    def requested(self, content):
        """(status, body, headers) of a well-behaved answer."""
        found = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        if not found:
            return 200, content, {}
        start = int(found[1])
        if start >= len(content):
            return 416, b"", {"Content_Range": f"bytes */{len(content)}"}
        return 206, content[start:], {"Content_Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}

    def good(self, content):
        status, body, headers = self.requested(content)
        self.answer(status, body, **headers)

    def ignores_range(self, content):
        self.answer(200, content)

    def cut_off(self, content):
        """Promise everything, send half."""
        status, body, headers = self.requested(content)
        self.answer(status, body[: len(body) // 2], length=len(body), **headers)

    def sends_nothing(self, content):
        self.answer(200, b"", length=len(content))

    def hangs_up(self, content):
        self.close_connection = True

    def ignores_range_and_cuts_off(self, content):
        self.answer(200, content[: len(content) // 2], length=len(content))

    def slow(self, content):
        status, body, headers = self.requested(content)
        self.answer(status, b"", length=len(body), **headers)
        step = max(1, len(body) // 20)
        for start in range(0, len(body), step):
            self.wfile.write(body[start : start + step])
            self.server.release.wait(0.01)

    def hold(self, content):
        """Send half, then wait for `release`."""
        status, body, headers = self.requested(content)
        half = len(body) // 2
        self.answer(status, body[:half], length=len(body), **headers)
        self.wfile.flush()
        self.server.held.set()
        self.server.release.wait(120)
        self.wfile.write(body[half:])

    def wrong_bytes(self, content):
        status, body, headers = self.requested(bytes(255 - value for value in content))
        self.answer(status, body, **headers)

    def too_short(self, content):
        self.answer(200, content[:-7])

    def too_long(self, content):
        self.answer(200, content + b"more")

    def endless(self, content):
        """No length, and more than there should be."""
        self.answer(200, content * 3, length="unsaid")

    def no_length(self, content):
        self.answer(200, content, length="unsaid")

    def nonsense_length(self, content):
        self.answer(200, content, length="9" * 5000)

    def other_part(self, content):
        self.answer(206, content[:10], Content_Range=f"bytes 0-9/{len(content)}")

    def redirect_loop(self, content):
        self.answer(302, b"", Location=self.path)

    def redirect_on(self, content):
        self.answer(302, b"", Location="/elsewhere.bin")

    def redirect_to_file(self, content):
        self.answer(302, b"", Location="ftp://127.0.0.1/file.bin")

    def web_page(self, content):
        self.answer(200, b"<html>please log in</html>", Content_Type="text/html; charset=utf-8")


@contextlib.contextmanager
def serve(content, *behaviours, headers=None):
    """Run a FileServer for the time of a with block."""
    with FileServer(content, *behaviours, headers=headers) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.release.set()
            server.shutdown()
            thread.join()
