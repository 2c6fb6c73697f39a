"""Selection against fusion on nano: its LLM trained anew under each way of having fewer tokens."""
