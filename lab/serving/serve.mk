.PHONY: serve-demo serve-load

serve-demo: .venvs/serve/.ready  ## Serve the embedded model by vLLM, ask it over the OpenAI API, show kept tokens and times
	@.venvs/serve/bin/python -m lab.serving.demo

serve-load: .venvs/serve/.ready  ## Load vLLM's server, 1 to 32 requests at once, all tokens and fewer: rates and first tokens (LOAD="--width 1024")
	@.venvs/serve/bin/python -m lab.serving.load $(LOAD)
