"""A real HTTP server on the loopback, on threads of this process."""

import http.server
import threading
from collections import deque
from contextlib import contextmanager


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.server.heard.append((self.path, self.headers))
        if self.path == "/broken":
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
            self.close_connection = True
            return
        self.send_response(self.server.statuses.popleft() if self.server.statuses else 200)
        body = b"x" * (1_000_000 if self.path == "/long" else 5)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments):
        pass


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        """Be silent: clients here leave in the middle of answers."""


@contextmanager
def serving():
    """Serve from here to the end of the block.

    The server has its `port`; `heard`, what was asked, as (path, headers); and `statuses`, with
    which the next requests are answered.
    """
    server = Server(("127.0.0.1", 0), Handler)
    server.heard, server.statuses = [], deque()
    server.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def closed_port():
    """Return a port that nobody listens on."""
    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        return server.server_address[1]
