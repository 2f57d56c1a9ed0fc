"""A web server on 127.0.0.1 that serves one file, well or badly, as a test tells it to; and small archives."""

import contextlib
import http.server
import io
import re
import tarfile
import threading
import zipfile


class FileServer(http.server.ThreadingHTTPServer):
    """Serves `content` under any path.

    behaviors: one for each request (a handler's method, or an HTTP status code), the last also for all that follow.
    requests: the Range headers of the requests so far.
    held: set as soon as a request is in the middle of its answer under "hold"; release: lets it continue.
    """

    daemon_threads = True

    def __init__(self, content, *behaviors):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.content = content
        self.behaviors = list(behaviors) or ["good"]
        self.requests = []
        self.held, self.release = threading.Event(), threading.Event()
        self.lock = threading.Lock()

    @property
    def address(self):
        return f"http://127.0.0.1:{self.server_port}/file.bin"

    def next_behavior(self):
        with self.lock:
            return self.behaviors.pop(0) if len(self.behaviors) > 1 else self.behaviors[0]

    def handle_error(self, request, client_address):
        """A client that goes away is expected."""


class _Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_GET(self):
        with self.server.lock:
            self.server.requests.append(self.headers.get("Range"))
        behavior = self.server.next_behavior()
        if isinstance(behavior, int):
            self.send_error(behavior)
        else:
            getattr(self, behavior)(self.server.content)

    def answer(self, status, body, length=None, **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if length != "unsaid":
            self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = True

    def requested(self, content):
        """(status, body, headers) of a correct answer."""
        found = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        start = int(found[1]) if found else 0
        if not start:
            return 200, content, {}
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

    def ignores_range_and_cuts_off(self, content):
        self.answer(200, content[: len(content) // 2], length=len(content))

    def hangs_up(self, content):
        self.close_connection = True

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
        self.good(bytes(255 - value for value in content))

    def too_short(self, content):
        self.answer(200, content[:-7])

    def endless(self, content):
        """No length, and more than there should be."""
        self.answer(200, content * 3, length="unsaid")

    def redirect_on(self, content, to="/elsewhere.bin"):
        self.answer(302, b"", Location=to)

    def redirect_to_ftp(self, content):
        self.redirect_on(content, "ftp://127.0.0.1/file.bin")

    def web_page(self, content):
        self.answer(200, b"<html>please log in</html>", Content_Type="text/html; charset=utf-8")


@contextlib.contextmanager
def serve(content, *behaviors):
    """Run a FileServer within a with block."""
    with FileServer(content, *behaviors) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.release.set()
            server.shutdown()
            thread.join()


def make_tar(files, **fields):
    """Return a tar of {path: content}; fields: of each member's TarInfo."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for path, content in files.items():
            member = tarfile.TarInfo(path)
            member.size = len(content)
            for name, value in fields.items():
                setattr(member, name, value)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def make_zip(files, compression=zipfile.ZIP_STORED):
    """Return a zip file of {path or ZipInfo: content}."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for path, content in files.items():
            archive.writestr(path, content)
    return buffer.getvalue()
