"""A server of the OpenAI-compatible protocol whose answers a function of the test gives."""

import json
import threading
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self.path.startswith("/v1/"):
            self._send(404, {"error": {"message": "Not Found"}})
            return
        self.server.asked.append(body)
        refused = next((name for name in self.server.refused if name in body), None)
        if refused is not None:
            self._send(400, {"error": {"message": f"Unknown parameter: '{refused}'.", "param": refused}})
            return
        text, finish = self.server.answer(body)
        chat = self.path.endswith("/chat/completions")
        choice = {"message": {"content": text}} if chat else {"text": text}
        usage = {"prompt_tokens": 7, "completion_tokens": len(text.split())}
        self._send(200, {"model": "m-2", "choices": [{**choice, "finish_reason": finish}], "usage": usage})

    def _send(self, status, tree):
        text = json.dumps(tree).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        with suppress(ConnectionError):  # whoever asked has gone
            self.wfile.write(text)


@contextmanager
def answering_server(answer, refused=()):
    """Serve ``answer(body) -> (text, finish_reason)``; bodies with a parameter in ``refused`` get a 400.

    Yields the server, with its ``url`` and the bodies ``asked``.
    """
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads, server.block_on_close = True, False
    server.asked, server.answer, server.refused = [], answer, refused
    server.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
