"""One HTTP server of the demo, run as a process: python -m rota.demo.server DELAY

It answers every GET with 200 after DELAY seconds and prints its port. Each line of its standard
input is another DELAY, from then on; it ends when its standard input does, as it does when its
parent is gone.
"""

import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer

HOST = "127.0.0.1"


class Handler(BaseHTTPRequestHandler):
    """Answers after a delay, and keeps the connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1  # head and body in one packet
    delay = 0.0

    def do_GET(self) -> None:
        """Answer 200 with two bytes."""
        if self.delay:
            time.sleep(self.delay)
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing."""


class Server(ThreadingHTTPServer):
    """One thread for each connection."""

    request_queue_size = 128

    def server_bind(self) -> None:
        """Bind without asking for the host's name, which may wait for a name server."""
        TCPServer.server_bind(self)
        self.server_name = HOST
        self.server_port = self.socket.getsockname()[1]


def main(delay: float) -> None:
    """Serve until standard input ends."""
    Handler.delay = delay
    with Server((HOST, 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        print(server.server_port, flush=True)
        for line in sys.stdin:
            Handler.delay = float(line)
        server.shutdown()


if __name__ == "__main__":
    main(float(sys.argv[1]))
