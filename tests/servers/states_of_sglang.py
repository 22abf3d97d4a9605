"""In the place of a SGLang server that gives hidden states: transformers' own, or what a test makes of them."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import torch

from megatron_gopd.config.models import WHOLE_STATES
from tests.tiny_models import load_plain

Told = list[list[float | None]] | None
STARTED = {flag.replace("-", "_"): value for flag, value in WHOLE_STATES.items()}


class StatesOfSGLang:
    """Tells of a model on a GPU, whose weights nobody compares."""

    def __init__(self, folder: Path, told: Callable[[Told, int], Told], settings: dict):
        """told: what is said in the place of rows [tokens, h] the count-th time; settings: that it was started with."""
        self._model, self._told, self._asked = load_plain(folder), told, 0
        about = {"model_path": str(folder), "model_type": self._model.config.model_type}
        self._told_of = {"/model_info": about, "/server_info": STARTED | settings | {"device": "cuda"}}
        answer = type("Answer", (_Answer,), {"server": self})
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), answer)
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        threading.Thread(target=self._http.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()

    def about(self, path: str) -> dict:
        return self._told_of.get(path, {})

    def generate(self, asked: dict) -> dict:
        tokens = asked["input_ids"]
        with torch.no_grad():
            states = self._model.model(torch.tensor([tokens])).last_hidden_state[0]
            law = self._model.lm_head(states).log_softmax(-1)
        about = {"finish_reason": {"type": "length"}}
        if not asked.get("return_hidden_states"):
            given = [[law[place - 1, token].item(), token, None] for place, token in enumerate(tokens)]
            return {"meta_info": about | {"input_token_logprobs": given[asked["logprob_start_len"] :]}}
        assert asked["sampling_params"]["max_new_tokens"] == 1
        self._asked += 1
        told = self._told(states.tolist(), self._asked)
        return {"meta_info": about | ({} if told is None else {"hidden_states": [told]})}


class _Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: StatesOfSGLang

    def __init__(self, *arguments):
        self.stand_in = type(self).server
        super().__init__(*arguments)

    def do_GET(self):
        self.reply(self.stand_in.about(self.path))

    def do_POST(self):
        self.reply(self.stand_in.generate(json.loads(self.rfile.read(int(self.headers["Content-Length"])))))

    def reply(self, body: dict) -> None:
        said = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)

    def log_message(self, *_):
        pass
