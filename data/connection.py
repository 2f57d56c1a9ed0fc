"""The connections that data/fetch.py uses: quick to notice that there is no network, and careful with redirects."""

import http.client
import queue
import ssl
import threading
import urllib.request
from urllib.parse import urlsplit

CONNECT_SECONDS = 4.0  # for name, connection and TLS together: whoever is offline hears of it within 5 s


class UnsafeRedirect(Exception):
    """The server sends us to where we don't go."""


def build_opener():
    """An opener of urllib's with the handlers of this file; proxies come from the environment, as is urllib's habit."""
    return urllib.request.build_opener(_HTTPHandler, _HTTPSHandler, _RedirectHandler)


class _QuickConnect:
    """For an HTTP connection: look up, connect and encrypt within CONNECT_SECONDS in all.

    A socket's own time-out counts for each address of a host by itself, and not for the look-up of its name.
    """

    def connect(self):
        outcome = queue.SimpleQueue()
        connect = super().connect

        def work():
            try:
                connect()
                outcome.put(None)
            except Exception as error:
                outcome.put(error)

        threading.Thread(target=work, daemon=True).start()
        try:
            error = outcome.get(timeout=CONNECT_SECONDS)
        except queue.Empty:
            raise TimeoutError(f"no answer within {CONNECT_SECONDS:g} s") from None
        if error:
            raise error


class _HTTPConnection(_QuickConnect, http.client.HTTPConnection):
    pass


class _HTTPSConnection(_QuickConnect, http.client.HTTPSConnection):
    pass


class _HTTPHandler(urllib.request.HTTPHandler):
    def http_open(self, request):
        return self.do_open(_HTTPConnection, request)


class _HTTPSHandler(urllib.request.HTTPSHandler):
    def https_open(self, request):
        return self.do_open(_HTTPSConnection, request, context=ssl.create_default_context())


class _RedirectHandler(urllib.request.HTTPRedirectHandler):
    """Follows redirects (ten at most, as urllib does), but never from an encrypted connection to an open one."""

    def redirect_request(self, request, file, code, message, headers, address):  # noqa: PLR0917 (urllib's signature)
        if urlsplit(address).scheme not in ({"https"} if request.type == "https" else {"http", "https"}):
            raise UnsafeRedirect(f"the server redirects to {address[:200]!r}, which isn't safe")
        return super().redirect_request(request, file, code, message, headers, address)
