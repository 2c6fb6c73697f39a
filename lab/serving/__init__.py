"""vLLM's server with tokensieve, started, asked and loaded: `make serve-demo serve-load`."""
