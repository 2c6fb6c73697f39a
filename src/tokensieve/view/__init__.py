"""Seeing what methods keep: a page to look at, and a server that answers questions."""
