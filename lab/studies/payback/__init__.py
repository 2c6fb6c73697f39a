"""Does the selector cost less than it saves? Width x depth x precision against quality and time."""
