"""Engines that serve models to many users, with fewer visual tokens.

An engine fixes how many rows a picture has before it looks at the picture. So the method must
choose by the picture alone and keep as many tokens as asked.

`setting`: what a server is told. `items`: what stays of each picture, by the same code as under a
sieve. `vllm`: the plugin; it imports vLLM only where vLLM calls it. `export`: a selector as a file
that ONNX Runtime and OpenVINO run by themselves. `app`: a small server of Transformers models;
`chat`: what its requests may say.
"""
