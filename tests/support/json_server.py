"""Serve JSON on this machine, for tests of clients."""

import json
import threading
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class JsonHandler(BaseHTTPRequestHandler):
    """Handler that reads and sends JSON, and logs nothing."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def read_json(self):
        """Read the body of a request."""
        return json.loads(self.rfile.read(int(self.headers["Content-Length"])))

    def send_json(self, status, tree):
        """Answer with a tree; a client that has gone is no error."""
        text = json.dumps(tree).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        with suppress(ConnectionError):
            self.wfile.write(text)


@contextmanager
def json_server(handler, port=0, **state):
    """Serve requests by a handler on a port, 0 for a free one; yields the server, with its ``url`` and the state."""
    server = ThreadingHTTPServer(("127.0.0.1", port), handler)
    server.daemon_threads, server.block_on_close = True, False
    server.url = f"http://127.0.0.1:{server.server_port}/v1"
    vars(server).update(state)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
