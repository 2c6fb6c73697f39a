"""The papers' own systems, trained as printed and as best read: what became of their claims."""
