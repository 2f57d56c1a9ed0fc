"""A web server on 127.0.0.1 that serves one file, well or badly, as a test tells it to; and small archives."""

import contextlib
import http.server
import io
import tarfile
import threading
import zipfile


class FileServer(http.server.ThreadingHTTPServer):
    """Serves `content` under any path.

    behaviors: a key of `answers` below or an HTTP status code for each request, the last also for all that follow.
    requests: the Range headers of the requests so far.
    held: set as soon as a request is in the middle of its answer under "hold"; release: lets it continue.
    """

    daemon_threads = True

    def __init__(self, content, *behaviors):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.address = f"http://127.0.0.1:{self.server_port}/file.bin"
        self.content = content
        self.behaviors = list(behaviors) or ["good"]
        self.requests = []
        self.held, self.release = threading.Event(), threading.Event()

    def handle_error(self, request, client_address):
        """A client that goes away is expected."""


class _Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_GET(self):
        server, content, wanted = self.server, self.server.content, self.headers.get("Range")
        server.requests.append(wanted)
        behavior = server.behaviors.pop(0) if len(server.behaviors) > 1 else server.behaviors[0]
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted else 0
        status, rest = 206 if start else 200, content[start:]
        half = rest[: len(rest) // 2]
        if start >= len(content):
            status = 416
        answers = {  # status, body, Content-Length, another header
            "good": (status, rest, len(rest)),
            "ignores_range": (200, content, len(content)),
            "cut_off": (status, half, len(rest)),
            "ignores_range_and_cuts_off": (200, content[: len(content) // 2], len(content)),
            "hold": (status, half, len(rest)),  # the other half comes after `release`
            "wrong_bytes": (200, content[::-1], len(content)),
            "too_short": (200, content[:-7], len(content) - 7),
            "endless": (200, content * 3, None),
            "redirect_on": (302, b"", 0, "Location", "/elsewhere.bin"),
            "redirect_to_ftp": (302, b"", 0, "Location", "ftp://127.0.0.1/file.bin"),
            "web_page": (200, b"<html>please log in</html>", 26, "Content-Type", "text/html; charset=utf-8"),
        }
        self.close_connection = True
        if behavior in answers:
            self.answer(*answers[behavior])
        elif behavior != "hangs_up":
            self.send_error(behavior)
        if behavior == "hold":
            self.wfile.flush()
            server.held.set()
            server.release.wait(120)
            self.wfile.write(rest[len(half) :])

    def answer(self, status, body, length, *header):
        self.send_response(status)
        if header:
            self.send_header(*header)
        if length is not None:
            self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.write(body)


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
