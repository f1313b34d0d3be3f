"""Serves a GGUF file with llama.cpp's own HTTP server (the OpenAI API), from its prebuilt package.

usage: serve_tiny_model.py FILE PORT [embed]

With `embed` it serves embeddings, else text: llama.cpp takes one or the other.
"""

import sys
import time

import xllamacpp


def main(path, port, embed):
    params = xllamacpp.CommonParams()
    params.model.path = path
    params.port = int(port)
    params.hostnames = ["127.0.0.1"]
    params.n_ctx = 2048
    params.n_parallel = 4
    params.warmup = False
    params.cpuparams.n_threads = 1
    if embed:
        params.embedding = True
        params.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
    server = xllamacpp.Server(params)
    print("listening", server.listening_address, flush=True)
    while True:
        time.sleep(3600)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], "embed" in sys.argv[3:])
