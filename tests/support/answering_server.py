"""A server of the OpenAI-compatible protocol whose answers a function of the test gives."""

from support.json_server import JsonHandler, json_server


class _Handler(JsonHandler):
    def do_POST(self):
        body = self.read_json()
        if not self.path.startswith("/v1/"):
            self.send_json(404, {"error": {"message": "Not Found"}})
            return
        self.server.asked.append(body)
        refused = next((name for name in self.server.refused if name in body), None)
        if refused is not None:
            self.send_json(400, {"error": {"message": f"Unknown parameter: '{refused}'.", "param": refused}})
            return
        text, finish = self.server.answer(body)
        chat = self.path.endswith("/chat/completions")
        choice = {"message": {"content": text}} if chat else {"text": text}
        usage = {"prompt_tokens": 7, "completion_tokens": len(text.split())}
        self.send_json(200, {"model": "m-2", "choices": [{**choice, "finish_reason": finish}], "usage": usage})


def answering_server(answer, refused=(), port=0):
    """Serve ``answer(body) -> (text, finish_reason)``; bodies with a parameter in ``refused`` get a 400.

    Yields the server, with its ``url`` and the bodies ``asked``.
    """
    return json_server(_Handler, port, asked=[], answer=answer, refused=refused)
