"""A server of a few lines in the place of SGLang: `stand_in_sglang.py HOST PORT [KEYFILE]`.

It tells of itself as one, remembers the name and the folder of its weights and what of its memory it was asked, and
samples the same three tokens always. What $NEVER_ANSWERED names, a path, it never answers.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

HOST, PORT = sys.argv[1], int(sys.argv[2])
KEY = Path(sys.argv[3]).read_text() if sys.argv[3:] else None
held = {"weight_version": "none", "read": [], "sampled": 0, "memory": []}


class Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.reply(200, {"tp_size": 1, "device": "stand-in", "pid": os.getpid()} | held)

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"] or 0)) or "{}")
        if KEY and self.headers.get("Authorization") != f"Bearer {KEY}":
            return self.reply(401, {"error": "Unauthorized"})
        if self.path == os.environ.get("NEVER_ANSWERED"):
            threading.Event().wait()
        if self.path.endswith("_memory_occupation"):
            held["memory"].append(self.path.split("_")[0])
        if self.path == "/update_weights_from_disk":
            held["weight_version"] = body["weight_version"]
            held["read"].append([body["model_path"], sorted(os.listdir(body["model_path"]))])
        held["sampled"] += self.path == "/generate"
        if self.path != "/generate":
            return self.reply(200, {"success": True})
        first = body["logprob_start_len"]  # -1: to sample, and not to score
        return self.reply(200, sampled() if first < 0 else scored(body["input_ids"][first:]))

    def reply(self, status: int, body: dict) -> None:
        said = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)

    def log_message(self, *_):
        pass


def sampled() -> dict:
    finish = {"type": "length"}
    about = {"finish_reason": finish, "weight_version": held["weight_version"]}
    tokens = [5, 6, 7]
    return {"output_ids": tokens, "meta_info": about | {"output_token_logprobs": [[-1.0, t, None] for t in tokens]}}


def scored(tokens: list[int]) -> dict:
    return {
        "meta_info": {"finish_reason": {"type": "length"}, "input_token_logprobs": [[-1.0, t, None] for t in tokens]}
    }


if __name__ == "__main__":
    print(f"listens at {HOST}:{PORT}", flush=True)
    ThreadingHTTPServer((HOST, PORT), Answer).serve_forever()
